//! The words of the command line, and what they make of files: only here anything is opened by path.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use keelson_init_control::fds::{FdsError, Given};
use keelson_vmm_control::{
    Boot, Client, Cpu, CpuIdentity, Disk, MachineConfig, Nic, Request, StateSet, cpu_list, fd_names,
};
use keelson_vmm_cpu::{HOST, MaskError, Topology, UnknownDefinition, check_masks};
use uuid::Uuid;

use crate::kvm::KvmError;
use crate::launch::{Setup, Stdio};
use crate::machine::Restore;
use crate::state::StateError;
use crate::state::file::StateFile;
use crate::state::identity::IdentityV1;

/// Keelson's virtual machine monitor: one process, one machine, on KVM.
#[derive(Debug, Parser)]
#[command(name = "keelson-vmm", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a machine with its serial console on standard input and output. On a terminal, Ctrl-] ends it.
    Run(Box<Run>),
    /// Suspend a running machine into a directory, and end it. `run --restore DIR` brings it back.
    Suspend(Suspend),
    /// Run the machine whose descriptors init handed in (KEELSON_FDS).
    Unit,
}

#[derive(Debug, Args)]
struct Suspend {
    /// The machine's control socket.
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// Write the state for a monitor of the release before this one.
    #[arg(long)]
    previous: bool,
    /// Where the files `state` and `memory` are made; they must not exist.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct Run {
    /// The kernel: a bzImage (vmlinuz), or an ELF file with a PVH entry (vmlinux).
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initramfs.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, default_value = "console=ttyS0", value_name = "TEXT")]
    cmdline: String,
    /// How many vCPUs.
    #[arg(long, default_value_t = 1, value_name = "N")]
    cpus: u32,
    /// What processor the guest sees: a definition's name, or `host`.
    #[arg(long, default_value = HOST, value_name = "NAME")]
    cpu: String,
    /// Processor features that the guest does not see, nor what needs them.
    #[arg(long, value_delimiter = ',', value_name = "FEATURE,...")]
    cpu_mask: Vec<String>,
    /// How vCPUs are arranged; one socket of single-threaded cores otherwise.
    #[arg(long, value_name = "SOCKETS:CORES:THREADS", value_parser = topology)]
    cpu_topology: Option<Topology>,
    /// The host processors that vCPUs run on, such as 0-3,8: given once for all vCPUs, or once for each.
    #[arg(long, value_name = "LIST")]
    cpu_affinity: Vec<String>,
    /// How much memory, in MiB.
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    memory: u64,
    /// A virtio disk on a raw file or block device; may be given several times.
    #[arg(long = "disk", value_name = "PATH[,ro][,serial=TEXT]", value_parser = DiskWord::parse)]
    disks: Vec<DiskWord>,
    /// A virtio network adapter on a tap device, which is made when there is none of that name; may be given several times.
    #[arg(long = "tap", value_name = "NAME[,mac=AA:BB:CC:DD:EE:FF]", value_parser = TapWord::parse)]
    taps: Vec<TapWord>,
    /// Listen for control words on this Unix socket.
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Listen for console clients on this Unix socket.
    #[arg(long, value_name = "SOCKET")]
    console: Option<PathBuf>,
    /// Keep the serial port's output in this file (at most 1 MiB, the newest).
    #[arg(long, value_name = "FILE")]
    console_log: Option<PathBuf>,
    /// Bring the machine back that was suspended into this directory. The other words must be those that it was started with; disks and
    /// taps may be elsewhere.
    #[arg(long, value_name = "DIR")]
    restore: Option<PathBuf>,
    /// The machine's name.
    #[arg(long, default_value = "vm", value_name = "NAME")]
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct DiskWord {
    path: PathBuf,
    read_only: bool,
    serial: String,
}

impl DiskWord {
    fn parse(word: &str) -> Result<Self, String> {
        let mut parts = word.split(',');
        let path = parts.next().filter(|p| !p.is_empty()).ok_or("a disk needs a path")?;
        let mut disk = Self { path: path.into(), read_only: false, serial: String::new() };
        for part in parts {
            match part.split_once('=') {
                None if part == "ro" => disk.read_only = true,
                Some(("serial", text)) => disk.serial = text.into(),
                _ => return Err(format!("`{part}` is neither `ro` nor `serial=TEXT`")),
            }
        }
        Ok(disk)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct TapWord {
    name: String,
    mac: Option<String>,
}

impl TapWord {
    fn parse(word: &str) -> Result<Self, String> {
        let (name, mac) = match word.split_once(',') {
            None => (word, None),
            Some((name, rest)) => {
                (name, Some(rest.strip_prefix("mac=").ok_or(format!("`{rest}` is not `mac=ADDRESS`"))?))
            }
        };
        if name.is_empty() || name.len() > 15 || name.contains(['/', '\0']) {
            return Err("a network device's name has 1 to 15 characters and no slash".into());
        }
        Ok(Self { name: name.into(), mac: mac.map(str::to_owned) })
    }
}

fn topology(word: &str) -> Result<Topology, String> {
    let mut numbers = word.split(':').map(str::parse);
    match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(sockets)), Some(Ok(cores)), Some(Ok(threads)), None) => {
            Ok(Topology { sockets, cores, threads })
        }
        _ => Err("write it as SOCKETS:CORES:THREADS, such as 1:4:2".into()),
    }
}

/// Why the words did not become a machine.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A file cannot be opened.
    #[error("{what} `{path}` cannot be opened")]
    Open {
        /// What it is.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A tap device cannot be had.
    #[error(
        "the tap device `{name}` cannot be opened (that needs CAP_NET_ADMIN, or a tap that was made for this user)"
    )]
    Tap {
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A socket cannot be made.
    #[error("the socket `{path}` cannot be made")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A saved state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A running machine's monitor.
    #[error(transparent)]
    Monitor(#[from] keelson_vmm_control::Error),
    /// The processor's name.
    #[error(transparent)]
    Definition(#[from] UnknownDefinition),
    /// A masked feature.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// A list of host processors.
    #[error("--cpu-affinity: {0}")]
    Affinity(String),
    /// What init handed in.
    #[error(transparent)]
    Given(#[from] FdsError),
    /// The description that init handed in.
    #[error("the configuration in the descriptor `{}` is not understood", fd_names::CONFIG)]
    Config(#[source] serde_json::Error),
}

impl Cli {
    /// Opens everything; `None` when all is done already.
    pub fn setup(self) -> Result<Option<Setup>, CliError> {
        match self.command {
            Command::Run(run) => run.setup().map(Some),
            Command::Suspend(suspend) => suspend.carry_out().map(|()| None),
            Command::Unit => unit(keelson_init_control::fds::take()?).map(Some),
        }
    }
}

/// The files of a suspended machine in its directory.
const STATE_FILE: &str = "state";
const MEMORY_FILE: &str = "memory";

impl Suspend {
    fn carry_out(self) -> Result<(), CliError> {
        let mut client = Client::connect(&self.control)?;
        let set = if self.previous { StateSet::Previous } else { StateSet::Current };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let (state, memory) = (self.dir.join(STATE_FILE), self.dir.join(MEMORY_FILE));
        let files = open("the state file", &state, &options)
            .and_then(|file| Ok((file, open("the memory file", &memory, &options)?)));
        let done =
            files.and_then(|(state, memory)| Ok(client.suspend(state.as_fd(), memory.as_fd(), set)?));
        if let Err(e) = done {
            // What is half written is of no use. A file that was there before is not ours.
            if !matches!(&e, CliError::Open { .. }) {
                let _ = std::fs::remove_file(&state).and_then(|()| std::fs::remove_file(&memory));
            }
            return Err(e);
        }
        // Names must last as long as what they name.
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| CliError::Open { what: "the directory", path: self.dir, source })?;
        Ok(client.tell(&Request::Kill)?)
    }
}

/// The state in a directory, and `/dev/userfaultfd` when this user may open it.
fn restore(dir: &Path) -> Result<Restore, CliError> {
    let mut both = OpenOptions::new();
    both.read(true).write(true);
    let state = open("the state file", &dir.join(STATE_FILE), &both)?;
    let memory = open("the memory file", &dir.join(MEMORY_FILE), OpenOptions::new().read(true))?;
    let userfaultfd = both.open("/dev/userfaultfd").map(OwnedFd::from);
    if let Err(e) = &userfaultfd {
        log::info!("/dev/userfaultfd cannot be opened, so all memory is read before the machine runs: {e}");
    }
    Ok(Restore { state: StateFile::open(state)?, memory, userfaultfd: userfaultfd.ok() })
}

impl Run {
    /// The processor. A definition for several vendors takes the host's.
    fn cpu(&self, kvm: &OwnedFd) -> Result<Cpu, CliError> {
        let masks = check_masks(self.cpu_mask.iter().map(String::as_str))?;
        let identity = if self.cpu == HOST {
            CpuIdentity::Host { masks }
        } else {
            let definition = keelson_vmm_cpu::find(&self.cpu)?;
            let fd = kvm
                .try_clone()
                .map_err(|source| KvmError::System { what: "duplicate a descriptor", source })?;
            let host = crate::kvm::host_cpu(&crate::sys::kvm(fd))?;
            CpuIdentity::Model(Box::new(definition.resolve(&host.vendor, &masks)))
        };
        let affinity = self.cpu_affinity.iter().map(|text| cpu_list(text)).collect::<Result<_, _>>();
        let affinity = affinity.map_err(CliError::Affinity)?;
        Ok(Cpu { identity, topology: self.cpu_topology, affinity })
    }

    fn setup(self) -> Result<Setup, CliError> {
        let restore = self.restore.as_deref().map(restore).transpose()?;
        // A machine that is brought back is the one that it was.
        let uuid = restore.as_ref().map(|r| IdentityV1::peek(&r.state.sections)).transpose()?;
        let kvm = crate::kvm::open()?;
        let cpu = self.cpu(&kvm)?;
        let config = MachineConfig {
            name: self.name,
            uuid: uuid.map_or_else(Uuid::new_v4, |identity| identity.uuid()),
            vcpus: self.cpus,
            memory_mib: self.memory,
            cpu,
            boot: Boot { cmdline: self.cmdline },
            disks: (0..)
                .zip(&self.disks)
                .map(|(n, d)| Disk {
                    fd: format!("disk{n}"),
                    read_only: d.read_only,
                    serial: d.serial.clone(),
                })
                .collect(),
            nics: (0u8..)
                .zip(&self.taps)
                .map(|(n, t)| Nic {
                    fd: format!("nic{n}"),
                    mac: t.mac.clone().unwrap_or_else(|| default_mac(&t.name, n)),
                })
                .collect(),
        };
        let listen = |path: &Path| {
            let listener = keelson_wire::Listener::bind(path);
            let fd = listener.and_then(|l| std::os::fd::AsFd::as_fd(&l).try_clone_to_owned());
            fd.map_err(|source| CliError::Socket { path: path.into(), source })
        };
        Ok(Setup {
            config,
            kvm,
            memory: None,
            restore,
            kernel: open("the kernel file", &self.kernel, OpenOptions::new().read(true))?,
            initramfs: self
                .initrd
                .map(|p| open("the initramfs file", &p, OpenOptions::new().read(true)))
                .transpose()?,
            disks: self
                .disks
                .iter()
                .map(|d| open("the disk", &d.path, OpenOptions::new().read(true).write(!d.read_only)))
                .collect::<Result<_, _>>()?,
            taps: self
                .taps
                .iter()
                .map(|t| {
                    crate::sys::open_tap(&t.name)
                        .map_err(|source| CliError::Tap { name: t.name.clone(), source })
                })
                .collect::<Result<_, _>>()?,
            control: self.control.as_deref().map(listen).transpose()?,
            console: self.console.as_deref().map(listen).transpose()?.map(UnixListener::from),
            console_log: self
                .console_log
                .map(|p| {
                    open(
                        "the console log",
                        &p,
                        OpenOptions::new().read(true).write(true).create(true).mode(0o600),
                    )
                })
                .transpose()?,
            stdio: Stdio::Console,
        })
    }
}

fn open(what: &'static str, path: &Path, options: &OpenOptions) -> Result<File, CliError> {
    options.open(path).map_err(|source| CliError::Open { what, path: path.into(), source })
}

/// A locally administered address that stays the same for the same tap.
fn default_mac(tap: &str, index: u8) -> String {
    // FNV-1a: any spread of names over addresses will do.
    let hash =
        tap.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let [a, b, c, d, ..] = hash.to_le_bytes();
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{index:02x}")
}

/// A machine from named descriptors.
fn unit(mut given: Given) -> Result<Setup, CliError> {
    let config = File::from(given.remove(fd_names::CONFIG)?);
    let config: MachineConfig = read_json(&config)?;
    let disks = config.disks.iter().map(|d| given.remove(&d.fd).map(File::from)).collect::<Result<_, _>>()?;
    let taps: Vec<OwnedFd> = config.nics.iter().map(|n| given.remove(&n.fd)).collect::<Result<_, _>>()?;
    let setup = Setup {
        config,
        kvm: given.remove(fd_names::KVM)?,
        memory: given.remove_optional(fd_names::MEMORY).map(File::from),
        restore: match given.remove_optional(fd_names::SAVED_STATE) {
            None => None,
            Some(state) => Some(Restore {
                state: StateFile::open(state.into())?,
                memory: given.remove(fd_names::SAVED_MEMORY)?.into(),
                userfaultfd: given.remove_optional(fd_names::USERFAULTFD),
            }),
        },
        kernel: given.remove(fd_names::KERNEL)?.into(),
        initramfs: given.remove_optional(fd_names::INITRAMFS).map(File::from),
        disks,
        taps,
        control: Some(given.remove(fd_names::CONTROL)?),
        console: given.remove_optional(fd_names::CONSOLE).map(UnixListener::from),
        console_log: given.remove_optional(fd_names::CONSOLE_LOG).map(File::from),
        stdio: Stdio::Unused,
    };
    for name in given.names() {
        log::warn!("a descriptor named `{name}` was handed in that the configuration does not use");
    }
    Ok(setup)
}

fn read_json(file: &File) -> Result<MachineConfig, CliError> {
    // From the start, wherever the writer left the file's position.
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let at = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match std::os::unix::fs::FileExt::read_at(file, &mut chunk, at) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(chunk.get(..n).unwrap_or_default()),
            Err(e) => return Err(CliError::Config(serde_json::Error::io(e))),
        }
    }
    serde_json::from_slice(&bytes).map_err(CliError::Config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_and_tap_words_are_taken_apart() {
        let disk = DiskWord::parse("/a/b.img,ro,serial=X1").unwrap();
        assert_eq!(disk, DiskWord { path: "/a/b.img".into(), read_only: true, serial: "X1".into() });
        assert!(DiskWord::parse(",ro").is_err() && DiskWord::parse("/a,rw").is_err());
        assert_eq!(
            TapWord::parse("tap0,mac=02:00:00:00:00:01").unwrap().mac.as_deref(),
            Some("02:00:00:00:00:01")
        );
        assert!(
            TapWord::parse("").is_err()
                && TapWord::parse("a-name-far-too-long").is_err()
                && TapWord::parse("a,b").is_err()
        );
    }

    #[test]
    fn a_default_address_is_unicast_local_and_stable() {
        let nic = Nic { fd: String::new(), mac: default_mac("tap0", 3) };
        let bytes = nic.mac_bytes().unwrap();
        assert_eq!((bytes[0], bytes[5]), (2, 3));
        assert_ne!(default_mac("tap1", 3), nic.mac);
    }

    #[test]
    fn the_command_line_is_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
