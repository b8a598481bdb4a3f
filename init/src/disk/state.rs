//! The state partition: found by label, checked, grown, mounted at /state; or the reason why the host runs from RAM. Init never makes
//! a file system: what looks broken may hold the only copy of somebody's configuration.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use keelson_init_control::StateVolume;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::devices::{self, Volume};
use super::{esp, grow};
use crate::clock;
use crate::drivers::{Drivers, Stage};
use crate::host::Host;
use crate::mounts;

/// The label of the file system, and the name of the partition.
const LABEL: &str = "KEELSON-STATE";
/// How long to wait for slow controllers when the firmware did not say where it booted from.
const WITHOUT_HINT: Duration = Duration::from_secs(5);
/// How long to wait for the disk that the firmware booted from.
const FOR_BOOT_DISK: Duration = Duration::from_secs(20);

enum Looked {
    /// By label.
    Found(Volume),
    /// A partition of that name without an ext4 of that label.
    Damaged(Volume),
    Nothing,
}

/// Finds, checks and mounts it, or mounts a /state in RAM.
pub(crate) fn bring_up(host: &Host, drivers: &Drivers) {
    let done = match look(drivers) {
        Looked::Found(volume) => use_volume(host, &volume),
        Looked::Damaged(volume) => {
            corrupt(host, &volume, "there is no ext4 file system with the label KEELSON-STATE on it");
            false
        }
        Looked::Nothing => {
            host.problem(
                "state-missing",
                "No partition has the label KEELSON-STATE. The host runs from defaults in RAM and forgets its configuration when it goes down.",
                "Attach the disk that Keelson was installed on, or write the disk image to one.",
            );
            false
        }
    };
    if !done && let Err(e) = mounts::state_in_ram() {
        log::error!("/state cannot be made in RAM: {}", e.desc());
    }
    if let Err(e) = mounts::state_directories() {
        host.problem(
            "state-full",
            format!("The directories on /state could not be made: {e}."),
            "Free space on the state partition, then restart the host.",
        );
    }
}

/// Looks, and waits while the disk may still show up: while drivers of disks are being loaded, and after that where there is hope.
/// The disk that the host booted from comes first; two installed disks in one server must not take turns.
fn look(drivers: &Drivers) -> Looked {
    let began = clock::now();
    let boot_partition = esp::boot_partition();
    loop {
        let seen = drivers.block_events();
        let all_tried = drivers.done(Stage::Storage);
        let volumes = devices::all();
        let labelled = |v: &&Volume| devices::superblock(&v.device()).is_some_and(|s| s.label == LABEL);
        let booted = boot_partition.as_deref().map(|guid| esp::by_guid(&volumes, guid));
        if let Some(Some(booted)) = &booted
            && let Some(found) = volumes.iter().filter(|v| v.same_disk(booted)).find(labelled)
        {
            return Looked::Found(found.clone());
        }
        let patience = match booted {
            Some(None) => FOR_BOOT_DISK,
            // The disk that the host booted from is there, and has no state partition; or nobody knows what to wait for.
            Some(Some(_)) => Duration::ZERO,
            None if drivers.may_bring_disks() => WITHOUT_HINT,
            None => Duration::ZERO,
        };
        let last = began.saturating_add(patience);
        let any = || volumes.iter().find(labelled).cloned();
        // Without a hint the first one is as good as any other, once every driver has shown its disks.
        if all_tried
            && boot_partition.is_none()
            && let Some(found) = any()
        {
            return Looked::Found(found);
        }
        if !drivers.wait_for_block(seen, all_tried, last) {
            return any().map_or_else(|| damaged(volumes.clone()), Looked::Found);
        }
    }
}

fn damaged(volumes: Vec<Volume>) -> Looked {
    let named = |v: &Volume| {
        v.part_of.as_ref().is_some_and(|(disk, number)| {
            devices::table(disk).iter().any(|entry| entry.number == *number && entry.name == LABEL)
        })
    };
    volumes.into_iter().find(named).map_or(Looked::Nothing, Looked::Damaged)
}

fn corrupt(host: &Host, volume: &Volume, why: &str) {
    host.problem(
        "state-corrupt",
        format!("The state partition {} is not used: {why}. The host runs from defaults in RAM; nothing on it was changed.", volume.device().display()),
        "Save the partition, then repair it with e2fsck on another machine, or write the disk image anew.",
    );
}

/// False when it cannot be used.
fn use_volume(host: &Host, volume: &Volume) -> bool {
    // What was unmounted in order needs no check; e2fsck -p would come to the same, and takes its time to.
    let mut checked = !devices::superblock(&volume.device()).is_some_and(|s| s.clean);
    if checked && let Err(why) = check(&volume.device()) {
        corrupt(host, volume, &why);
        return false;
    }
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    // An error on disk must not take the host down: the file system becomes read-only.
    let mounting = || mount(Some(&volume.device()), "/state", Some("ext4"), flags, Some("errors=remount-ro"));
    let mut mounted = mounting();
    if mounted.is_err() && !checked {
        checked = true;
        if let Err(why) = check(&volume.device()) {
            corrupt(host, volume, &why);
            return false;
        }
        mounted = mounting();
    }
    log::debug!("the state partition was {}checked", if checked { "" } else { "clean and not " });
    if let Err(e) = mounted {
        corrupt(host, volume, &format!("it cannot be mounted ({})", mount_reason(e)));
        return false;
    }
    // Here and not later: it runs a process of its own, which the reaper of the main loop would take.
    growing(host, grow::partition(volume));
    let state =
        StateVolume { device: volume.device().display().to_string(), bytes: capacity(), grown: false };
    log::info!("the state partition is {} ({} MiB)", state.device, state.bytes >> 20);
    host.lock().boot.state = Some(state);
    true
}

fn growing(host: &Host, result: Result<bool, grow::GrowError>) -> bool {
    result.unwrap_or_else(|e| {
        host.problem(
            "state-not-grown",
            format!("The state partition keeps its size: {}.", keelson_init_control::logging::chain(&e)),
            "The host works as it is; look at the disk's partition table.",
        );
        false
    })
}

/// Grows the mounted file system to its partition. Nobody waits for it: it is in use meanwhile.
pub(crate) fn grow_mounted(host: &Host) {
    let Some(device) = host.lock().boot.state.as_ref().map(|state| state.device.clone()) else { return };
    let Some(volume) = devices::all().into_iter().find(|v| v.device() == Path::new(&device)) else { return };
    let Some(superblock) = devices::superblock(&volume.device()) else { return };
    if growing(host, grow::file_system(&volume, &superblock, Path::new("/state"))) {
        let bytes = capacity();
        log::info!("the state partition {device} is grown to {} MiB", bytes >> 20);
        if let Some(state) = host.lock().boot.state.as_mut() {
            (state.bytes, state.grown) = (bytes, true);
        }
    }
}

/// The size of /state's file system in bytes.
fn capacity() -> u64 {
    nix::sys::statvfs::statvfs("/state").map(|v| v.blocks().saturating_mul(v.fragment_size())).unwrap_or(0)
}

fn mount_reason(e: Errno) -> String {
    match e {
        Errno::EUCLEAN | Errno::EBADMSG => "its structures are damaged".into(),
        e => e.desc().into(),
    }
}

/// e2fsck -p repairs what is safe to repair without asking. The reason when that was not enough.
fn check(device: &Path) -> Result<(), String> {
    let run = Command::new("/sbin/e2fsck").arg("-p").arg(device).stdin(Stdio::null()).output();
    let run = match run {
        Ok(run) => run,
        Err(e) => {
            log::warn!("the state partition is mounted unchecked: /sbin/e2fsck cannot be run: {e}");
            return Ok(());
        }
    };
    let output = String::from_utf8_lossy(&run.stdout);
    let last = output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    match run.status.code() {
        // 1: errors were corrected; 2: so that a mounted root would need a restart, which this is not.
        Some(0) => Ok(()),
        Some(code @ 1..=3) => {
            log::warn!("e2fsck repaired the state partition (code {code}): {last}");
            Ok(())
        }
        Some(code) => {
            Err(format!("e2fsck could not repair it (code {code}): {}", output.trim().replace('\n', "; ")))
        }
        None => Err("e2fsck was ended by a signal".into()),
    }
}
