//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use keelson_api::Service;
use keelson_api::client::Fingerprint;
use uuid::Uuid;

use crate::place::Place;

/// Manage a Keelson host.
#[derive(Debug, Parser)]
#[command(
    name = "keelctl",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 not logged in, 5 host not reachable, 6 the host's certificate is not the trusted one."
)]
pub(crate) struct Cli {
    /// The host, NAME[:PORT]; the one logged in to last when missing.
    #[arg(long, global = true, env = "KEELSON_HOST", value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// A bearer token, in place of the one that `login` stored.
    #[arg(long, global = true, env = "KEELSON_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// The SHA-256 fingerprint of the host's certificate, in place of the stored one.
    #[arg(long, global = true, env = "KEELSON_FINGERPRINT", value_name = "SHA256")]
    pub(crate) fingerprint: Option<Fingerprint>,
    /// Speak to the host that this runs on, over its local socket (as root).
    #[arg(long, global = true, conflicts_with = "token")]
    pub(crate) local: bool,
    /// That socket, where it is elsewhere.
    #[arg(long, global = true, hide = true, requires = "local", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// How results are written.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    Table,
    /// The API's JSON, for programs.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Log in to a host and remember it. Its certificate is trusted on first use.
    Login(Login),
    /// End the session with the host.
    Logout,
    /// The host itself.
    Host {
        #[command(subcommand)]
        command: Option<HostCommand>,
    },
    /// The host's network.
    Network {
        #[command(subcommand)]
        command: Option<NetworkCommand>,
    },
    /// Virtual machines.
    Vm {
        #[command(subcommand)]
        command: VmCommand,
    },
    /// Datastores and their files.
    Datastore {
        #[command(subcommand)]
        command: DatastoreCommand,
    },
    /// Recent tasks.
    Task {
        #[command(subcommand)]
        command: TaskCommand,
    },
    /// The host's log.
    Logs(Logs),
    /// Bearer tokens for programs.
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// A completion script for a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// NAME[:PORT] or ADDRESS[:PORT].
    pub(crate) to: Option<String>,
    /// The account.
    #[arg(long, default_value = keelson_api::ROOT)]
    pub(crate) username: String,
    /// Read the password from standard input rather than from the terminal.
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// Trust the certificate that the host shows without asking.
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Identity, version, hardware, conditions (also without a command).
    Show,
    /// Set the host's name.
    SetName {
        /// A host name (RFC 1123).
        name: String,
    },
    /// What the host's processors can show to guests: features, CPU definitions, the baseline.
    Cpu,
    /// Set the CPU definition beyond which no new VM goes; `none` removes it.
    SetCpuBaseline {
        /// A definition's name.
        definition: String,
    },
    /// Shut down or restart the host.
    Power {
        /// Which.
        action: HostPowerArgument,
        /// How long guests may take after their power button, in seconds.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(0..=3600))]
        guest_deadline: u32,
    },
    /// Restart one of the host's daemons; VMs go on.
    RestartAgent {
        /// Which.
        agent: Agent,
        /// Return as soon as the task has begun; with `hostd` always, since the task ends with it.
        #[arg(long)]
        no_wait: bool,
    },
    /// Set root's password.
    SetPassword {
        /// Read the present and the new password, a line each, from standard input (the new one alone with --local on a host without one).
        #[arg(long)]
        password_stdin: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Agent {
    /// The host agent, which serves the API: sessions end, tokens stay.
    Hostd,
    /// The network daemon.
    Netd,
    /// The console.
    Dcui,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HostPowerArgument {
    /// Power off.
    Off,
    /// Restart.
    Reboot,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// NICs, switches, port groups, VMkernel adapters (also without a command).
    Show,
    /// Set what a VMkernel adapter is used for: the whole list.
    SetServices {
        /// Such as vmk0.
        adapter: String,
        /// Of: management, vmotion; separated by commas.
        #[arg(value_delimiter = ',', value_parser = service, required = true)]
        services: Vec<Service>,
    },
    /// Set how a VMkernel adapter gets its IPv4 address.
    SetIpv4 {
        /// Such as vmk0.
        adapter: String,
        /// `dhcp`, `disabled`, or ADDRESS/PREFIX.
        address: String,
        /// The default router; with ADDRESS/PREFIX only.
        #[arg(long)]
        gateway: Option<std::net::Ipv4Addr>,
        /// Name servers, at most three, separated by commas.
        #[arg(long, value_delimiter = ',')]
        dns: Option<Vec<std::net::Ipv4Addr>>,
    },
    /// Set name servers and search domains.
    SetDns {
        /// At most three; those of DHCP are used when there are none.
        servers: Vec<std::net::Ipv4Addr>,
        /// Search domains, separated by commas.
        #[arg(long, value_delimiter = ',')]
        search: Vec<String>,
    },
    /// Restart the management network.
    Restart,
}

fn service(text: &str) -> Result<Service, String> {
    match text {
        "management" => Ok(Service::Management),
        "vmotion" => Ok(Service::Vmotion),
        _ => Err("`management` and `vmotion` are services".into()),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// All VMs.
    List,
    /// One VM.
    Show {
        /// Its name or id.
        vm: String,
    },
    /// Create a VM; it is powered off.
    Create(Box<Create>),
    /// Change a VM that is powered off. What is not given stays.
    Set(Box<Set>),
    /// Power on.
    Start {
        #[command(flatten)]
        vm: VmAndWait,
        /// State that the host which owns the VM is off for good. A wrong claim lets two hosts write the same disks.
        #[arg(long)]
        force: bool,
    },
    /// Shut the guest down by its power button; with --force, power off at once.
    Stop {
        #[command(flatten)]
        vm: VmAndWait,
        /// As by pulling the plug.
        #[arg(long)]
        force: bool,
    },
    /// Who could run it, since when and why: its owners, the latest first.
    History {
        /// Its name or id.
        vm: String,
    },
    /// Reset, as by the reset button.
    Reset(VmAndWait),
    /// Stop the vCPUs.
    Pause(VmAndWait),
    /// Let the vCPUs run again.
    Resume(VmAndWait),
    /// Speak with the guest on its serial console. Ctrl-] quits.
    Console {
        /// Its name or id.
        vm: String,
        /// Print what the serial port printed lately, and end.
        #[arg(long)]
        log: bool,
    },
    /// Delete a VM with its directory.
    Delete(VmAndWait),
}

#[derive(Debug, Args)]
pub(crate) struct VmAndWait {
    /// Its name or id.
    pub(crate) vm: String,
    /// Return as soon as the task has begun.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name, unique on the host.
    #[arg(required_unless_present = "file")]
    pub(crate) name: Option<String>,
    /// Read the whole specification, the API's JSON, from this file (`-`: standard input).
    #[arg(short, long, conflicts_with_all = ["name", "vcpus", "memory", "cpu", "cpu_mask", "cores_per_socket", "threads_per_core", "cpu_affinity", "cpu_shares", "cpu_limit", "cpu_reservation", "kernel", "initramfs", "cmdline", "disks", "nics", "datastore"], value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// vCPUs.
    #[arg(long, default_value_t = 1)]
    pub(crate) vcpus: u32,
    /// Memory: 512M, 2G, or a number of MiB.
    #[arg(long, default_value = "512M", value_parser = mebibytes)]
    pub(crate) memory: u64,
    #[command(flatten)]
    pub(crate) cpu: CpuWords,
    /// The kernel: "[datastore] path" or datastore:path.
    #[arg(long, required_unless_present = "file")]
    pub(crate) kernel: Option<Place>,
    /// The initramfs, written likewise.
    #[arg(long)]
    pub(crate) initramfs: Option<Place>,
    /// The kernel's command line.
    #[arg(long, default_value = "console=ttyS0")]
    pub(crate) cmdline: String,
    /// A disk, repeatable: `new=SIZE` for a new empty one (10G), or an image, "[datastore] path" or datastore:path; `,ro` makes it read-only.
    #[arg(long = "disk", value_name = "DISK", value_parser = crate::place::disk)]
    pub(crate) disks: Vec<keelson_api::DiskSpec>,
    /// A network adapter, repeatable: a port group, with `,mac=MAC` to set its address.
    #[arg(long = "nic", value_name = "NIC", value_parser = crate::place::nic)]
    pub(crate) nics: Vec<keelson_api::NicSpec>,
    /// The datastore for its directory.
    #[arg(long)]
    pub(crate) datastore: Option<String>,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(CPU_WORDS))]
pub(crate) struct Set {
    /// Its name or id.
    pub(crate) vm: String,
    /// vCPUs.
    #[arg(long, group = "what")]
    pub(crate) vcpus: Option<u32>,
    /// Memory: 512M, 2G, or a number of MiB.
    #[arg(long, value_parser = mebibytes, group = "what")]
    pub(crate) memory: Option<u64>,
    #[command(flatten)]
    pub(crate) cpu: CpuWords,
    /// The kernel: "[datastore] path" or datastore:path.
    #[arg(long, group = "what")]
    pub(crate) kernel: Option<Place>,
    /// The initramfs, written likewise.
    #[arg(long, group = "what", conflicts_with = "no_initramfs")]
    pub(crate) initramfs: Option<Place>,
    /// Boot without an initramfs.
    #[arg(long, group = "what")]
    pub(crate) no_initramfs: bool,
    /// The kernel's command line.
    #[arg(long, group = "what")]
    pub(crate) cmdline: Option<String>,
    /// A network adapter, repeatable: the whole list. A port group, with `,mac=MAC` to set its address.
    #[arg(long = "nic", value_name = "NIC", value_parser = crate::place::nic, group = "what", conflicts_with = "no_nics")]
    pub(crate) nics: Vec<keelson_api::NicSpec>,
    /// Take all network adapters away.
    #[arg(long, group = "what")]
    pub(crate) no_nics: bool,
}

/// The ids of [`CpuWords`].
const CPU_WORDS: [&str; 8] = [
    "cpu",
    "cpu_mask",
    "cores_per_socket",
    "threads_per_core",
    "cpu_affinity",
    "cpu_shares",
    "cpu_limit",
    "cpu_reservation",
];

/// A VM's processor. `vm set` leaves what is not given as it is; an empty list, or the word `none`, takes away.
#[derive(Debug, Default, Args)]
pub(crate) struct CpuWords {
    /// What the guest sees: a CPU definition's name, or `host`.
    #[arg(long, value_name = "NAME")]
    pub(crate) cpu: Option<String>,
    /// Processor features that the guest does not see, nor what needs them.
    #[arg(long, value_delimiter = ',', value_name = "FEATURE,...")]
    pub(crate) cpu_mask: Option<Vec<String>>,
    /// Cores of a socket; all in one otherwise.
    #[arg(long, value_name = "N|none", value_parser = number_or_none)]
    pub(crate) cores_per_socket: Option<NumberOrNone>,
    /// Threads of a core; 1 otherwise.
    #[arg(long, value_name = "N|none", value_parser = number_or_none)]
    pub(crate) threads_per_core: Option<NumberOrNone>,
    /// The host processors that vCPUs run on, such as 0-3,8: given once for all vCPUs, or once for each.
    #[arg(long, value_name = "LIST")]
    pub(crate) cpu_affinity: Option<Vec<String>>,
    /// The share where processors are short, 10 to 100000; 1000 is usual.
    #[arg(long, value_name = "N|none", value_parser = number_or_none)]
    pub(crate) cpu_shares: Option<NumberOrNone>,
    /// The most that it may use, in percent of one host processor.
    #[arg(long, value_name = "PERCENT|none", value_parser = number_or_none)]
    pub(crate) cpu_limit: Option<NumberOrNone>,
    /// What it is to have in any case, in percent of one host processor.
    #[arg(long, value_name = "PERCENT|none", value_parser = number_or_none)]
    pub(crate) cpu_reservation: Option<NumberOrNone>,
}

/// A number, or that there is to be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NumberOrNone(pub(crate) Option<u32>);

fn number_or_none(text: &str) -> Result<NumberOrNone, String> {
    match text {
        "none" => Ok(NumberOrNone(None)),
        _ => text.parse().map(|n| NumberOrNone(Some(n))).map_err(|_| "give a number, or `none`".into()),
    }
}

impl CpuWords {
    /// Whether nothing was given.
    pub(crate) fn is_empty(&self) -> bool {
        self.cpu.is_none()
            && self.cpu_mask.is_none()
            && self.cpu_affinity.is_none()
            && [
                self.cores_per_socket,
                self.threads_per_core,
                self.cpu_shares,
                self.cpu_limit,
                self.cpu_reservation,
            ]
            .iter()
            .all(Option::is_none)
    }

    /// The processor with what was given.
    pub(crate) fn applied(&self, to: &keelson_api::VmCpu) -> keelson_api::VmCpu {
        let number = |given: Option<NumberOrNone>, present| given.map_or(present, |n| n.0);
        let list = |given: &Option<Vec<String>>, present: &[String]| {
            let mut list = given.clone().unwrap_or_else(|| present.to_vec());
            list.retain(|text| !text.is_empty() && text != "none");
            list
        };
        keelson_api::VmCpu {
            definition: self.cpu.clone().or_else(|| to.definition.clone()),
            masks: list(&self.cpu_mask, &to.masks),
            cores_per_socket: number(self.cores_per_socket, to.cores_per_socket),
            threads_per_core: number(self.threads_per_core, to.threads_per_core),
            affinity: list(&self.cpu_affinity, &to.affinity),
            shares: number(self.cpu_shares, to.shares),
            limit_percent: number(self.cpu_limit, to.limit_percent),
            reservation_percent: number(self.cpu_reservation, to.reservation_percent),
        }
    }
}

/// MiB, written `512M`, `2G`, `1T` or as a plain number.
pub(crate) fn mebibytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size such as 512M, 2G or 2048 (MiB)");
    let upper = text.trim().to_ascii_uppercase();
    let plain = upper.trim_end_matches("IB").trim_end_matches('B');
    let (digits, factor) = match plain.chars().last() {
        Some('M') => (plain.trim_end_matches('M'), 1),
        Some('G') => (plain.trim_end_matches('G'), 1024),
        Some('T') => (plain.trim_end_matches('T'), 1024 * 1024),
        _ => (plain, 1),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
}

#[derive(Debug, Subcommand)]
pub(crate) enum DatastoreCommand {
    /// All datastores.
    List,
    /// Files in a directory.
    Ls {
        /// "[datastore] dir", datastore:dir, or a datastore's name alone.
        place: Place,
    },
    /// Upload a file.
    Upload {
        /// The file here.
        file: PathBuf,
        /// Where to: "[datastore] path" or datastore:path; a place that ends with `/` keeps the file's name.
        place: Place,
    },
    /// Download a file.
    Download {
        /// Which: "[datastore] path" or datastore:path.
        place: Place,
        /// Where to (`-`: standard output); the file's name when missing.
        file: Option<PathBuf>,
    },
    /// Delete a file.
    Rm {
        /// Which: "[datastore] path" or datastore:path.
        place: Place,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Recent tasks.
    List,
    /// One task.
    Show {
        /// Its id.
        id: Uuid,
    },
    /// Wait until a task has ended; fails when the task did.
    Wait {
        /// Its id.
        id: Uuid,
    },
    /// Ask a task to stop.
    Cancel {
        /// Its id.
        id: Uuid,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on with new lines.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only of this source: kernel, init, netd, hostd, vm/ID.
    #[arg(long)]
    pub(crate) source: Option<String>,
    /// The last N lines only.
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) lines: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Issue a token; it is shown once.
    Create {
        /// What it is for.
        name: String,
        /// How long it is good, in days; for ever when missing.
        #[arg(long, value_name = "DAYS")]
        days: Option<u32>,
    },
    /// Issued tokens.
    List,
    /// End a token.
    Delete {
        /// Its id.
        id: Uuid,
    },
}
