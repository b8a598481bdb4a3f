//! What init (PID 1) can be told, and a client for it; with the two habits that every unit shares with init: how it gets its
//! descriptors ([`fds`]) and how it logs ([`logging`]).
//!
//! A client names a unit of a kind that is compiled into init and gives parameters, never a path or an argument list.

mod client;
pub mod fds;
pub mod logging;
mod sys;
mod unit;
mod words;

pub use client::{Client, Error};
pub use unit::{Exit, ExitRecord, Tty, UnitId, UnitIdError, UnitState, UnitStatus, VmLimits};
pub use words::{AddressWord, HostWords, WordError, check_hostname, parse_cmdline, parse_file};

use serde::{Deserialize, Serialize};

/// Where init listens. Only root and the host agent's user are admitted.
pub const SOCKET: &str = "/run/keelson/init.sock";

/// The user and group of hostd: the same on every host, and the owner of all files on datastores.
pub const HOSTD_UID: u32 = 900;
/// VM processes run as `VM_UID_BASE + n`, a different n for each VM that runs.
pub const VM_UID_BASE: u32 = 100_000;

/// What init is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How the boot went, and what the host was told at power-on: answered by [`Answer::Boot`].
    Boot,
    /// All units: answered by [`Answer::Units`].
    Units,
    /// Start a VM's process, `keelson-vmm unit`. The message carries one descriptor for each name in `fds`, in order. init adds
    /// the listening sockets `control` and `console`, runs the process under a user id and a control group of its own, and keeps
    /// in the unit's descriptor store those named in `keep`. Refused when the unit exists and has not ended.
    StartVm {
        /// The VM.
        id: uuid::Uuid,
        /// The names of the descriptors that come with this message.
        fds: Vec<String>,
        /// Those of them that outlive the process, until released.
        keep: Vec<String>,
        /// What the control group allows.
        limits: VmLimits,
    },
    /// Ask a unit to end (SIGTERM; for a VM that is its power button) and kill it after `deadline_ms`. Answered at once; watch
    /// for the end. A daemon that is stopped so is not restarted.
    Stop {
        /// Which.
        unit: UnitId,
        /// How long it may take, in milliseconds.
        deadline_ms: u64,
    },
    /// Kill a unit (SIGKILL to its whole control group). A daemon is then restarted as after any exit; a VM is not.
    Kill {
        /// Which.
        unit: UnitId,
    },
    /// Stop a daemon and start it again, or start one that was stopped.
    Restart {
        /// Which.
        unit: UnitId,
    },
    /// Forget a VM unit that has ended: its exit record and its sockets. Kept descriptors must be released first.
    Forget {
        /// Which.
        unit: UnitId,
    },
    /// Keep the descriptor that comes with this message in a unit's store, replacing one of that name.
    Keep {
        /// Whose store.
        unit: UnitId,
        /// Under which name.
        name: String,
    },
    /// The names in all stores: answered by [`Answer::Kept`].
    Kept,
    /// A copy of a kept descriptor: answered by [`Answer::Done`] with the descriptor.
    Fetch {
        /// Whose store.
        unit: UnitId,
        /// Which.
        name: String,
    },
    /// Release a kept descriptor; the last copy of a memfd frees its memory.
    Release {
        /// Whose store.
        unit: UnitId,
        /// Which.
        name: String,
    },
    /// Log lines with a sequence number of at least `since`, oldest first, at most `max`: answered by [`Answer::Logs`].
    Logs {
        /// The first sequence number wanted; 0 for all that are left.
        since: u64,
        /// How many at most.
        max: u32,
        /// Only of this source (`kernel`, `init`, a unit's id).
        source: Option<String>,
    },
    /// Turn this connection into a stream of [`Event`]s.
    Watch,
    /// Set the host's name (sethostname); hostd remembers it.
    SetHostname {
        /// A valid host name (RFC 1123), 1 to 63 characters.
        name: String,
    },
    /// Shut down or restart the host: VMs get their power button and `guest_deadline_ms`, then all units end, file systems are
    /// flushed and unmounted. Answered at once.
    Power {
        /// Which.
        action: PowerAction,
        /// How long guests may take, in milliseconds.
        guest_deadline_ms: u64,
    },
}

/// How the host goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    /// Power off.
    PowerOff,
    /// Restart.
    Reboot,
}

/// What init answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done (or, for `Stop` and `Power`, begun).
    Done,
    /// How the boot went.
    Boot(Box<Boot>),
    /// All units.
    Units(Vec<UnitStatus>),
    /// All stores.
    Kept(Vec<Kept>),
    /// Log lines.
    Logs(Vec<LogLine>),
}

/// One kept descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Whose store.
    pub unit: UnitId,
    /// Its name.
    pub name: String,
    /// What it holds of memory or disk, in bytes (allocated blocks, for files and memfds).
    pub bytes: u64,
}

/// How the boot went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// The product's version.
    pub version: String,
    /// This boot's id (`/proc/sys/kernel/random/boot_id`; a light host has one of its own).
    pub boot_id: String,
    /// The machine's own id (SMBIOS's system UUID, which only root may read); `None` where the firmware gives none that tells it
    /// from others, and on a light host.
    pub system_uuid: Option<uuid::Uuid>,
    /// Whether this is a light host: namespaces of another machine, not a server of its own.
    pub light: bool,
    /// What the host was told at power-on.
    pub words: HostWords,
    /// Words that were not understood, in order.
    pub word_errors: Vec<WordError>,
    /// Steps with the time at which each was done, in milliseconds since the kernel started (CLOCK_BOOTTIME; for a light host
    /// since init started).
    pub timeline: Vec<Step>,
    /// What a person should know: no state partition, a driver that failed, …
    pub problems: Vec<Problem>,
    /// The state partition; `None` when the host runs from defaults in RAM.
    pub state: Option<StateVolume>,
    /// The console lines that dcui serves.
    pub consoles: Vec<Tty>,
}

/// The step after which the drivers of virtual machines are loaded and hostd has its devices, or it is known why not.
pub const STEP_MACHINES: &str = "machines";

/// One step of the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its name, such as `mounts`, `drivers`, `state`, `units`.
    pub name: String,
    /// When it was done, in milliseconds since the kernel started.
    pub at_ms: u64,
}

/// Something that a person should know, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable name for programs, such as `state-missing`.
    pub code: String,
    /// What is wrong, on what, why.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// The state partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateVolume {
    /// Its device, such as `/dev/vda2`.
    pub device: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// Whether this boot was the first and grew it.
    pub grown: bool,
}

/// One line of the log ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Its number, from 1, without gaps; older ones are overwritten.
    pub seq: u64,
    /// When, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// `kernel`, `init` or a unit's id.
    pub source: String,
    /// Syslog priority: 3 error, 4 warning, 6 information, 7 debug.
    pub priority: u8,
    /// The text, without its newline; at most 2 KiB.
    pub text: String,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A unit's state changed. Right after `Watch` one comes for each unit that exists.
    Unit(UnitStatus),
    /// Shutting down has begun.
    PoweringDown(PowerAction),
    /// A step of the boot is done. Right after `Watch` one comes for each step that was done before.
    Step(Step),
}

/// Why init did not do what it was asked; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// There is no such unit.
    #[error("there is no unit {0}")]
    NoSuchUnit(UnitId),
    /// The unit runs already.
    #[error("unit {0} runs already")]
    Running(UnitId),
    /// This kind of unit cannot be asked that.
    #[error("unit {unit}: {why}")]
    NotForThisUnit {
        /// Which unit.
        unit: UnitId,
        /// What it cannot do.
        why: String,
    },
    /// There is no descriptor of that name.
    #[error("unit {unit} keeps no descriptor named {name}")]
    NoSuchDescriptor {
        /// Whose store.
        unit: UnitId,
        /// Which name.
        name: String,
    },
    /// A parameter is wrong.
    #[error("{field}: {problem}")]
    BadParameter {
        /// Which.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The host is going down.
    #[error("the host is shutting down")]
    GoingDown,
    /// It was tried and failed.
    #[error("{what}: {why}")]
    Failed {
        /// What was tried.
        what: String,
        /// Why it failed.
        why: String,
    },
    /// This caller may not ask that.
    #[error("uid {0} may not ask init for that")]
    NotPermitted(u32),
}
