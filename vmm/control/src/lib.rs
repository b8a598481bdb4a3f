//! What a virtual machine's monitor (`keelson-vmm`, one process per VM) can be told, and a client for it.
//!
//! - [`MachineConfig`] is the whole description of a machine. It names descriptors, never paths: whoever starts the monitor opens
//!   kernel, disks and taps and hands them in under the names that the configuration uses.
//! - [`Request`], [`Answer`], [`Event`] and [`Refusal`] are the words of the control socket.
//! - The console socket carries raw bytes: on connect the monitor sends what the serial port printed lately (at most
//!   [`CONSOLE_REPLAY`] bytes), then what it prints; bytes sent to it are typed into the serial port.

mod client;
mod config;
mod cpu;

pub use client::{Client, Error, console_socket, control_socket};
pub use config::{
    Boot, ConfigError, Disk, MAX_CMDLINE, MAX_DISKS, MAX_NICS, MAX_VCPUS, MIN_MEMORY_MIB, MachineConfig, Nic,
    fd_names,
};
pub use cpu::{Cpu, CpuIdentity, MAX_HOST_CPU, cpu_list};

use serde::{Deserialize, Serialize};

/// How much of the serial port's recent output a new console connection is sent, in bytes.
pub const CONSOLE_REPLAY: usize = 64 << 10;

/// What a monitor is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How the machine is: answered by [`Answer::Status`].
    Status,
    /// Stop all vCPUs and drain the devices; a machine that is paused already stays so.
    Pause,
    /// Let the vCPUs run again.
    Resume,
    /// Press the ACPI power button (ACPI 6.5, 4.8.2.2.1). What the guest makes of it is the guest's affair.
    PowerButton,
    /// Reset the machine as its reset button would: vCPUs, devices and firmware tables start anew, memory is kept as it is
    /// but for what the boot loader writes.
    Reset,
    /// Pause the machine and write its whole state to two files that come with the request, in this order: the state file and the
    /// memory file, both regular, empty and open for reading and writing. Answered when both are durable. The machine stays paused:
    /// [`Request::Kill`] ends it, [`Request::Resume`] makes it go on, which marks the state file as used up. When it fails, the machine
    /// is as it was.
    Suspend {
        /// In which versions the state is written.
        set: StateSet,
    },
    /// End the machine at once, as pulling its plug would. The monitor answers, then exits with [`ExitCode::Killed`].
    Kill,
    /// Turn this connection into a stream of [`Event`]s, the current state first.
    Watch,
}

/// In which versions of its sections a state is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateSet {
    /// This monitor's own.
    #[default]
    Current,
    /// Those of the release before, for a monitor of that release.
    Previous,
}

/// What a monitor answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// How the machine is.
    Status(Status),
}

/// A machine's state, as its monitor sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// The vCPUs run.
    Running,
    /// The vCPUs are stopped and the devices are quiet.
    Paused,
    /// The guest switched itself off, or was killed; the monitor is about to exit.
    Off,
}

/// A snapshot of a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The machine's name, from its configuration.
    pub name: String,
    /// The machine's UUID, from its configuration.
    pub uuid: uuid::Uuid,
    /// Its state.
    pub state: MachineState,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Its memory, in MiB.
    pub memory_mib: u64,
    /// Guest memory that the host has allocated so far, in MiB (what the guest touched).
    pub memory_touched_mib: u64,
    /// Time since the first guest instruction, in milliseconds; paused time is included.
    pub uptime_ms: u64,
    /// From the monitor's exec to the first guest instruction, in microseconds.
    pub start_us: u64,
    /// How often the guest was reset, by itself or by request.
    pub resets: u64,
    /// The monitor's version.
    pub version: String,
}

/// Something that happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The state is (now) this.
    State(MachineState),
    /// The guest, or a request, reset the machine.
    Reset,
    /// The guest asked for power-off (ACPI S5, or the sleep-control register); the monitor exits with [`ExitCode::GuestOff`].
    GuestPowerOff,
    /// The machine broke: why, in one sentence. The monitor exits with [`ExitCode::Fault`].
    Fault(String),
}

/// Why a monitor did not do what it was asked; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The request makes no sense in the machine's state.
    #[error("the machine is {state:?}; {wanted}")]
    WrongState {
        /// The state it is in.
        state: MachineState,
        /// What was wanted of it and why that cannot be.
        wanted: String,
    },
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

/// The exit codes of `keelson-vmm`, which init keeps as the unit's exit reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The guest switched itself off.
    GuestOff = 0,
    /// The machine, or its monitor, failed; the log says why.
    Fault = 1,
    /// The configuration is wrong or the host lacks something; no guest instruction ran.
    BadConfig = 2,
    /// Killed by request.
    Killed = 3,
    /// Killed by request after its state had been saved: it can be brought back.
    Suspended = 4,
}
