//! A monitor on this machine's KVM: how fast it starts, what memory it takes for itself, and how QEMU does with the same payload.
//!
//! The payload is the one of the monitor's own tests: it runs in every kind of KVM, and its first act is to print. Two times are taken:
//! what the monitor says of itself (exec to first guest instruction), and, for the comparison, the time from before the exec to the
//! first byte on the serial port as seen from outside, which is taken of each monitor in the same way.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keelson_vmm_control::{Client, MachineState};

use super::figures::median;
use crate::artefacts;
use crate::process::Process;

/// How long a monitor's first byte may take.
const WITHIN: Duration = Duration::from_secs(20);
/// The guest's memory, in MiB.
const MEMORY_MIB: &str = "512";
/// The payload's first line.
const FIRST_LINE: &str = "boot 1";
/// The payload's word for doing nothing.
const IDLE: &str = "idle";

/// One start of a monitor.
#[derive(Debug)]
pub(super) struct Started {
    /// From its exec to the first guest instruction, by its own account.
    pub(super) start_ms: f64,
    /// From before its exec to the guest's first byte on the serial port, from outside.
    pub(super) first_byte_ms: f64,
    /// What it has of memory that no other process shares, the guest's not counted.
    pub(super) private_mib: f64,
}

/// Starts a monitor with an idle vCPU, measures it, and ends it.
pub(super) fn start(payload: &Path, directory: &Path) -> Result<Started> {
    let control = directory.join("control.sock");
    let mut command = Command::new(artefacts::binary("keelson-vmm")?);
    command.args(["run", "--memory", MEMORY_MIB, "--cmdline", IDLE, "--kernel"]).arg(payload);
    command.arg("--control").arg(&control);
    let (process, first_byte) = first_byte(&mut command, "keelson-vmm")?;
    let status = Client::connect(&control)?.status()?;
    ensure!(status.state == MachineState::Running, "the monitor's machine is {:?}", status.state);
    ensure!(status.start_us > 0, "the monitor does not know when it started");
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", process.pid()))?;
    process.kill();
    // A killed monitor leaves its socket behind.
    std::fs::remove_file(&control)?;
    Ok(Started {
        start_ms: status.start_us as f64 / 1000.0,
        first_byte_ms: millis(first_byte),
        private_mib: private_kib(&maps) as f64 / 1024.0,
    })
}

/// Runs a monitor whose guest's serial port is its standard output, until the guest's first byte; the time since before its exec.
fn first_byte(command: &mut Command, name: &str) -> Result<(Process, Duration)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let begun = Instant::now();
    let mut process = Process::spawn(command, name)?;
    let mut output = BufReader::new(process.stdout.take().context("no output of the monitor")?);
    let (sender, came) = channel();
    std::thread::spawn(move || {
        let first = output.fill_buf().map(|bytes| !bytes.is_empty());
        let _ = sender.send((begun.elapsed(), first));
        let mut line = String::new();
        let _ = output.read_line(&mut line);
        let _ = sender.send((begun.elapsed(), Ok(line.trim_end() == FIRST_LINE)));
        // The pipe stays open while the guest runs.
        let _ = std::io::copy(&mut output, &mut std::io::sink());
    });
    let wait = || match came.recv_timeout(WITHIN) {
        Ok((at, Ok(true))) => Ok(at),
        Err(RecvTimeoutError::Timeout) => Err(anyhow::anyhow!("{name}: no byte within {WITHIN:?}")),
        _ => Err(anyhow::anyhow!("{name} did not run the payload")),
    };
    let at = wait()?;
    // That it was the payload's.
    wait()?;
    Ok((process, at))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// KiB that are this process's alone, without the memory of the guest (a memfd).
fn private_kib(smaps: &str) -> u64 {
    let (mut guest, mut sum) = (false, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Private_Clean:" | "Private_Dirty:" | "Private_Hugetlb:") if !guest => {
                sum += words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
            }
            // The head of a mapping: address range, permissions, offset, device, inode, and perhaps a name.
            Some(first) if !first.ends_with(':') => guest = line.contains(" /memfd:guest-memory"),
            _ => {}
        }
    }
    sum
}

/// QEMU's ways to be quick: its smallest machine, with the firmware that it brings for it, and the processor that KVM has.
const QEMU_MACHINES: [&str; 3] =
    ["microvm", "microvm,acpi=off,x-option-roms=off", "microvm,pic=off,pit=off,rtc=off,x-option-roms=off"];
const QEMU_PROCESSORS: [&str; 3] = ["host", "host,-arch-capabilities", "qemu64"];

fn qemu(payload: &Path, machine: &str, processor: &str) -> Result<f64> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "kvm", "-cpu", processor, "-machine", machine, "-m", MEMORY_MIB, "-smp", "1"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]);
    command.args(["-append", IDLE, "-kernel"]).arg(payload);
    let (process, at) = first_byte(&mut command, "qemu")?;
    process.kill();
    Ok(millis(at))
}

/// The median of QEMU's quickest way; `None` where no way of it runs the payload here.
pub(super) fn best_qemu(payload: &Path, times: usize) -> Result<Option<f64>> {
    let mut best: Option<(f64, &str, &str)> = None;
    for machine in QEMU_MACHINES {
        // The first processor that this KVM can be given.
        let found = QEMU_PROCESSORS.iter().find_map(|cpu| {
            let once = qemu(payload, machine, cpu);
            Some((once.and_then(|_| qemu(payload, machine, cpu)).ok()?, *cpu))
        });
        if let Some((ms, processor)) = found {
            eprintln!("qemu -machine {machine} -cpu {processor}: {ms:.1} ms");
            if best.is_none_or(|(least, ..)| ms < least) {
                best = Some((ms, machine, processor));
            }
        }
    }
    let Some((_, machine, processor)) = best else {
        eprintln!("SKIPPED: ratio.vmm.start: no machine of QEMU's runs the payload on this KVM");
        return Ok(None);
    };
    let all = (0..times).map(|_| qemu(payload, machine, processor)).collect::<Result<Vec<_>>>()?;
    eprintln!("qemu -machine {machine} -cpu {processor}: {all:.1?} ms");
    median(&all).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_not_the_monitors() {
        let smaps = "00400000-00500000 r-xp 00000000 08:01 1  /bin/keelson-vmm\n\
                     Size:               1024 kB\nPrivate_Clean:       100 kB\nPrivate_Dirty:        20 kB\n\
                     7f0000000000-7f0020000000 rw-s 00000000 00:01 2  /memfd:guest-memory (deleted)\n\
                     Private_Dirty:    524288 kB\nVmFlags: rd wr\n\
                     7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0  [stack]\nPrivate_Dirty:         8 kB\n";
        assert_eq!(private_kib(smaps), 128);
    }
}
