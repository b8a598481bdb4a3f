//! An emulated server: QEMU with a firmware, a disk that holds the shipped image, NICs in the lab's network, a serial console and a
//! machine protocol. Where the machine has hardware virtualisation with nesting, QEMU uses it; else it emulates (lab speed).

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::artefacts;
use crate::console::Console;
use crate::esp;
use crate::net::LabNet;
use crate::process::{Process, bound, scratch};
use crate::qmp::Qmp;

/// How long a step of an emulated server may take before a test gives up. Not a measure of speed: the lab machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What a server boots from.
#[derive(Debug, Clone)]
pub enum BootFrom {
    /// The shipped disk image under UEFI firmware, as a server does.
    Disk,
    /// Kernel and initramfs handed to QEMU: a few seconds faster, for tests that are not about the firmware.
    Kernel,
    /// The same kernel with the same command line and another initramfs, such as the bench's.
    Initramfs(PathBuf),
}

/// What a server is made of.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// A name for messages and files.
    pub name: String,
    /// What it boots from.
    pub boot: BootFrom,
    /// Its memory, in MiB.
    pub memory_mib: u32,
    /// How many NICs it has; each is plugged into `lab0`.
    pub nics: u32,
    /// QEMU's model of them, such as `virtio-net-pci` or `e1000e`.
    pub nic_model: String,
    /// Host words for the kernel command line, each with its prefix.
    pub words: Vec<String>,
    /// Whether the processor has SVM (nested virtualisation); without it there is no KVM in the server.
    pub svm: bool,
    /// The disk, of a server that existed before; a fresh copy of the image when `None`.
    pub disk: Option<PathBuf>,
    /// How much larger than the image the server's disk is, in MiB.
    pub disk_extra_mib: u64,
    /// What `keelson.conf` on its EFI system partition says; as shipped when `None`.
    pub conf: Option<String>,
    /// Whether its state partition is damaged before power-on, beyond what a file-system check mends by itself.
    pub tear_state: bool,
    /// Whether its screen (VGA) exists, for pictures.
    pub vga: bool,
    /// Show the serial console's raw bytes on this process's standard error as well.
    pub echo: bool,
}

impl ServerOptions {
    /// A server with 2 GiB, one NIC and a fresh disk.
    pub fn new(name: &str, boot: BootFrom) -> Self {
        Self {
            name: name.into(),
            boot,
            memory_mib: 2048,
            nics: 1,
            nic_model: "virtio-net-pci".into(),
            words: Vec::new(),
            svm: true,
            disk: None,
            disk_extra_mib: 256,
            conf: None,
            tear_state: false,
            vga: false,
            echo: false,
        }
    }

    /// Adds a host word, such as `keelson.hostname=esx7`.
    #[must_use]
    pub fn word(mut self, word: impl Into<String>) -> Self {
        self.words.push(word.into());
        self
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    process: Process,
    /// Its serial console.
    pub console: Console,
    qmp: Qmp,
    /// Its disk; a later server can be started from it.
    pub disk: PathBuf,
    /// When its power was switched on.
    pub power_on: Instant,
    /// The lab's ends of its NICs' cables.
    pub taps: Vec<String>,
    directory: tempfile::TempDir,
}

/// QEMU's accelerator and processor here, and why.
pub fn accelerator(svm: bool) -> (Vec<String>, String) {
    let nested = ["kvm_amd", "kvm_intel"].iter().any(|module| {
        std::fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
            .is_ok_and(|v| matches!(v.trim(), "1" | "Y"))
    });
    if nested && File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        let cpu = if svm { "host" } else { "host,-svm,-vmx" };
        return (["-accel", "kvm", "-cpu", cpu].map(String::from).to_vec(), "KVM with nesting".into());
    }
    let cpu = if svm { "EPYC,+svm,+npt" } else { "EPYC,-svm" };
    (
        ["-accel", "tcg,thread=multi", "-cpu", cpu].map(String::from).to_vec(),
        "emulation (no nested virtualisation here)".into(),
    )
}

impl Server {
    /// Switches a server on.
    pub fn start(net: &LabNet, options: &ServerOptions) -> Result<Self> {
        let directory = scratch(&options.name)?;
        let at = |file: &str| directory.path().join(file);
        let disk = match &options.disk {
            Some(disk) => disk.clone(),
            None => {
                let disk = at("disk.img");
                copy_sparse(&artefacts::image("keelson.img")?, &disk)?;
                let file = File::options().write(true).open(&disk)?;
                file.set_len(file.metadata()?.len() + (options.disk_extra_mib << 20))?;
                disk
            }
        };
        if let Some(conf) = &options.conf {
            esp::write(&disk, "keelson.conf", conf)?;
        }
        if options.tear_state {
            tear_state(&disk)?;
        }
        let serial = UnixListener::bind(at("serial.sock"))?;
        let monitor = UnixListener::bind(at("qmp.sock"))?;
        let mut command = bound("qemu-system-x86_64");
        command.args(accelerator(options.svm).0);
        command.args([
            "-machine",
            "q35",
            "-smp",
            "2",
            "-m",
            &options.memory_mib.to_string(),
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ]);
        command.args(["-vga", if options.vga { "std" } else { "none" }]);
        command
            .arg("-chardev")
            .arg(format!("socket,id=serial,path={}", at("serial.sock").display()))
            .args(["-serial", "chardev:serial"]);
        command
            .arg("-chardev")
            .arg(format!("socket,id=qmp,path={}", at("qmp.sock").display()))
            .args(["-mon", "chardev=qmp,mode=control"]);
        command.args([
            "-object",
            "rng-random,id=rng0,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=rng0",
        ]);
        command.arg("-drive").arg(format!("if=virtio,format=raw,cache=writeback,file={}", disk.display()));
        match &options.boot {
            BootFrom::Disk => {
                let vars = at("vars.fd");
                std::fs::copy(artefacts::image("ovmf/OVMF_VARS_4M.fd")?, &vars)?;
                let code = artefacts::image("ovmf/OVMF_CODE_4M.fd")?;
                command
                    .arg("-drive")
                    .arg(format!("if=pflash,format=raw,unit=0,readonly=on,file={}", code.display()));
                command.arg("-drive").arg(format!("if=pflash,format=raw,unit=1,file={}", vars.display()));
                if !options.words.is_empty() {
                    // How an owner gives a UKI words without Secure Boot (systemd-stub(7), SMBIOS type 11).
                    let words = options.words.join(" ").replace(',', ",,");
                    command
                        .arg("-smbios")
                        .arg(format!("type=11,value=io.systemd.stub.kernel-cmdline-extra={words}"));
                }
            }
            from @ (BootFrom::Kernel | BootFrom::Initramfs(_)) => {
                let base = std::fs::read_to_string(artefacts::image("cmdline")?)?;
                let initramfs = match from {
                    BootFrom::Initramfs(path) => path.clone(),
                    _ => artefacts::image("initramfs.cpio")?,
                };
                command.arg("-kernel").arg(artefacts::image("vmlinuz")?).arg("-initrd").arg(initramfs);
                command.arg("-append").arg(format!("{} {}", base.trim(), options.words.join(" ")));
            }
        }
        let mut taps = Vec::new();
        for n in 0..options.nics {
            let tap = net.tap()?;
            command.arg("-netdev").arg(format!("tap,id=net{n},ifname={tap},script=no,downscript=no"));
            command.arg("-device").arg(format!(
                "{},id=nic{n},netdev=net{n},mac=52:54:00:{}",
                options.nic_model,
                mac_tail(&options.name, n)
            ));
            taps.push(tap);
        }
        command.stdout(Stdio::null()).stderr(File::create(at("qemu.log"))?);
        let power_on = Instant::now();
        let process = Process::spawn(&mut command, &options.name)?;
        let accept = |listener: UnixListener, what: &str| -> Result<std::os::unix::net::UnixStream> {
            accept_or_end(&listener, &process).with_context(|| {
                let log = std::fs::read_to_string(at("qemu.log")).unwrap_or_default();
                format!("QEMU did not connect its {what}: {}", log.trim())
            })
        };
        let serial = accept(serial, "serial line")?;
        let qmp = Qmp::over(accept(monitor, "machine protocol")?)?;
        let echo = options.echo.then(|| Box::new(std::io::stderr()) as Box<dyn std::io::Write + Send>);
        let console = Console::new(serial.try_clone()?, serial, echo);
        Ok(Self { process, console, qmp, disk, power_on, taps, directory })
    }

    /// Where this server's files are: disk, firmware variables, QEMU's log.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// QEMU's machine protocol.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Waits until the server has switched itself off.
    pub fn wait_off(&self, within: Duration) -> Result<ExitStatus> {
        self.process.wait(within)
    }

    /// Pulls the power cord.
    pub fn power_cut(&self) {
        self.process.kill();
    }

    /// Pulls the power cord, if it is still on, and keeps the disk: the next server's `disk`, and the directory it is in.
    pub fn into_disk(self) -> (PathBuf, tempfile::TempDir) {
        self.process.kill();
        (self.disk, self.directory)
    }
}

/// The last three bytes of a NIC's MAC address: from the server's name, so that two servers of one network differ.
fn mac_tail(name: &str, nic: u32) -> String {
    let sum =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [a, b, ..] = sum.to_le_bytes();
    format!("{a:02x}:{b:02x}:{nic:02x}")
}

fn accept_or_end(listener: &UnixListener, process: &Process) -> Result<std::os::unix::net::UnixStream> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let mut polled =
            [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(listener), nix::poll::PollFlags::POLLIN)];
        // The short wait only bounds how late QEMU's own end is noticed; a connection wakes it at once.
        let ready = nix::poll::poll(&mut polled, 200u16)?;
        if ready > 0 {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(false)?;
            return Ok(stream);
        }
        if let Some(status) = process.ended() {
            bail!("it ended ({status})");
        }
        if Instant::now() > end {
            bail!("the time is up");
        }
    }
}

/// Overwrites the group descriptors and tables of the state partition's ext4, behind its superblock.
fn tear_state(disk: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = File::options().read(true).write(true).open(disk)?;
    let (start, _) = esp::partition(&file, 2)?;
    Ok(file.write_all_at(&[0xa5; 4 << 20], start + 4096)?)
}

fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to).status()?;
    if !status.success() {
        bail!("{} could not be copied to {}", from.display(), to.display());
    }
    Ok(())
}
