//! What a VM's monitor is started with: every descriptor that it will ever have, by name. The monitor itself opens nothing.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};

use keelson_api::{Fault, Problem};
use keelson_init_control::{Request, VmLimits};
use keelson_vmm_control::{Boot, Disk, MachineConfig, Nic, fd_names};
use keelson_wire::CallError;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::document::{CONSOLE_LOG, VmDocument};
use super::{Vms, cpu, kernel};
use crate::datastores::{Access, DatastorePath, Directory, Kind};
use crate::{hardware, problems};

/// Threads of a monitor beside its vCPUs: one for each device, control, console, signals.
const OTHER_THREADS: u32 = 64;

/// A VM that is ready to be started.
#[derive(Debug)]
pub(super) struct Launch {
    names: Vec<String>,
    fds: Vec<OwnedFd>,
    limits: VmLimits,
}

/// Why a VM was not started.
#[derive(Debug)]
pub(super) struct NotStarted {
    pub(super) problem: Problem,
    /// No answer came, so init may have started it, or may still do so.
    pub(super) perhaps: bool,
}

impl From<Problem> for NotStarted {
    fn from(problem: Problem) -> Self {
        Self { problem, perhaps: false }
    }
}

impl Launch {
    fn add(&mut self, name: impl Into<String>, fd: impl Into<OwnedFd>) {
        self.names.push(name.into());
        self.fds.push(fd.into());
    }

    /// Has init start the monitor.
    pub(super) fn start(self, vms: &Vms, document: &VmDocument) -> Result<(), NotStarted> {
        let request = Request::StartVm {
            id: document.id,
            fds: self.names,
            keep: vec![fd_names::MEMORY.into()],
            limits: self.limits,
        };
        let borrowed: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        match vms.units.call(|c| c.tell_with_fds(&request, &borrowed)) {
            Ok(_) => Ok(()),
            Err(error) => Err(NotStarted {
                problem: problems::init(format!("{} could not be started", document.name), &error),
                perhaps: matches!(error, CallError::Wire { .. }),
            }),
        }
    }
}

/// Opens everything but the network adapters.
pub(super) fn open(vms: &Vms, document: &VmDocument, directory: &DatastorePath) -> Result<Launch, Problem> {
    // Guest memory is charged to the group too, so a limit of it would have to know the monitor's own need to the page.
    let limits = VmLimits { threads: Some(document.vcpus + OTHER_THREADS), ..cpu::limits(&document.cpu) };
    let mut launch = Launch { names: Vec::new(), fds: Vec::new(), limits };
    launch.add(fd_names::KVM, hardware::open_kvm().map_err(|e| e.problem(&document.name))?);
    launch.add(fd_names::MEMORY, memory(document)?);
    let file = vms.check_file("kernel", &document.kernel)?;
    if let Ok(Err(why)) = kernel::identify(&file) {
        let detail = format!("`{}` is no kernel that can be booted: {why}", document.kernel);
        return Err(Problem::new(Fault::InvalidArgument, detail)
            .field("kernel")
            .remedy("upload the kernel again, or change the VM"));
    }
    launch.add(fd_names::KERNEL, file);
    if let Some(initramfs) = &document.initramfs {
        launch.add(fd_names::INITRAMFS, vms.check_file("initramfs", initramfs)?);
    }
    for (i, disk) in document.disks.iter().enumerate() {
        launch.add(format!("disk{i}"), open_disk(vms, &format!("disks[{i}].path"), disk)?);
    }
    let home = vms.home(directory)?;
    launch.add(fd_names::CONSOLE_LOG, console_log(&home, directory)?);
    launch.add(fd_names::CONFIG, config(document)?);
    Ok(launch)
}

/// Has netd make the taps.
pub(super) fn open_taps(vms: &Vms, launch: &mut Launch, document: &VmDocument) -> Result<(), Problem> {
    for (i, nic) in document.nics.iter().enumerate() {
        let index = u32::try_from(i).unwrap_or(u32::MAX);
        let doing = format!("the adapter {i} of {} on `{}` could not be made", document.name, nic.port_group);
        let (tap, fd) = vms.netd.ask(&doing, |c| c.open_tap(document.id, index, &nic.port_group)).map_err(
            |mut problem| {
                if problem.fault == Fault::NotFound {
                    problem.field = Some(format!("nics[{i}].port_group"));
                }
                problem
            },
        )?;
        log::debug!("{tap} is the adapter {i} of {}", document.name);
        launch.add(format!("nic{i}"), fd);
    }
    Ok(())
}

/// Guest memory: a memfd of exactly its size, which no holder of the descriptor can shrink or grow.
fn memory(document: &VmDocument) -> Result<OwnedFd, Problem> {
    let make = || -> Result<OwnedFd, Errno> {
        let fd = memfd_create("keelson-guest-memory", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let size = i64::try_from(document.memory_mib << 20).map_err(|_| Errno::EFBIG)?;
        nix::unistd::ftruncate(&fd, size)?;
        fcntl(
            &fd,
            FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL),
        )?;
        Ok(fd)
    };
    make().map_err(|e| {
        Problem::new(
            Fault::InsufficientResourcesFault,
            format!("memory of {} MiB for {} could not be set up: {e}", document.memory_mib, document.name),
        )
        .remedy("power off other VMs, or give this one less memory")
    })
}

/// Opens a disk and takes its lock, which lives as long as any copy of the descriptor: a second VM on the same image is refused,
/// even after the host agent was killed.
fn open_disk(vms: &Vms, field: &str, disk: &super::Disk) -> Result<File, Problem> {
    let (path, store) = vms.datastores.resolve(field, &disk.path)?;
    let access = if disk.read_only { Access::Read } else { Access::ReadWrite };
    let file = store.open_file(&path, access).map_err(|e| e.field(field))?;
    let lock = nix::libc::flock {
        l_type: if disk.read_only { nix::libc::F_RDLCK } else { nix::libc::F_WRLCK } as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(file),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            let detail = format!("`{path}` is a disk of another VM that is powered on");
            Err(Problem::new(Fault::FileInUse, detail)
                .field(field)
                .remedy("power that VM off first, or give each VM an image of its own"))
        }
        Err(e) => Err(problems::file(format!("`{path}` could not be locked"), &e.into()).field(field)),
    }
}

/// The console's log, begun anew at each power-on.
fn console_log(home: &Directory, directory: &DatastorePath) -> Result<File, Problem> {
    let failed =
        |e: std::io::Error| problems::file(format!("`{directory}/{CONSOLE_LOG}` could not be opened"), &e);
    if home.meta(CONSOLE_LOG).map_err(failed)?.is_some_and(|m| m.kind != Kind::File) {
        return Err(failed(Errno::EINVAL.into()));
    }
    home.remove(CONSOLE_LOG).map_err(failed)?;
    home.create(CONSOLE_LOG).map_err(failed)
}

/// The monitor's configuration, as a file that is read from its start.
fn config(document: &VmDocument) -> Result<OwnedFd, Problem> {
    let config = machine(document)?;
    let failed = |why: String| {
        Problem::new(
            Fault::SystemError,
            format!("the configuration of {} could not be written: {why}", document.name),
        )
        .remedy("look at the host's log")
    };
    config.validate().map_err(|e| {
        Problem::new(Fault::InvalidArgument, e.problem).field(e.field).remedy("change the VM")
    })?;
    let json = serde_json::to_vec(&config).map_err(|e| failed(e.to_string()))?;
    let fd =
        memfd_create("keelson-machine-config", MFdFlags::MFD_CLOEXEC).map_err(|e| failed(e.to_string()))?;
    let mut file = File::from(fd);
    file.write_all(&json).and_then(|()| file.rewind()).map_err(|e| failed(e.to_string()))?;
    Ok(file.into())
}

fn machine(document: &VmDocument) -> Result<MachineConfig, Problem> {
    let short = document.id.simple().to_string();
    let serial = |i: usize| format!("{}-{i}", short.get(..12).unwrap_or_default());
    Ok(MachineConfig {
        name: document.name.clone(),
        uuid: document.id,
        vcpus: document.vcpus,
        memory_mib: document.memory_mib,
        cpu: cpu::machine(document)?,
        boot: Boot { cmdline: document.cmdline.clone() },
        disks: document
            .disks
            .iter()
            .enumerate()
            .map(|(i, d)| Disk { fd: format!("disk{i}"), read_only: d.read_only, serial: serial(i) })
            .collect(),
        nics: document
            .nics
            .iter()
            .enumerate()
            .map(|(i, n)| Nic { fd: format!("nic{i}"), mac: n.mac.clone() })
            .collect(),
    })
}
