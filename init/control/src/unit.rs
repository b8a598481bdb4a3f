//! Units: their names, states and how they ended.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A console line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tty {
    /// The first virtual terminal, `/dev/tty1`.
    Tty1,
    /// The first serial line, `/dev/ttyS0`.
    TtyS0,
}

impl Tty {
    /// Its device.
    pub fn device(self) -> &'static str {
        match self {
            Self::Tty1 => "/dev/tty1",
            Self::TtyS0 => "/dev/ttyS0",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tty1 => "tty1",
            Self::TtyS0 => "ttyS0",
        }
    }
}

/// A unit's name. Written `netd`, `hostd`, `dcui/tty1`, `vm/<uuid>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnitId {
    /// The network daemon.
    Netd,
    /// The host agent.
    Hostd,
    /// The console on one line.
    Dcui(Tty),
    /// A virtual machine.
    Vm(Uuid),
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netd => f.write_str("netd"),
            Self::Hostd => f.write_str("hostd"),
            Self::Dcui(tty) => write!(f, "dcui/{}", tty.name()),
            Self::Vm(id) => write!(f, "vm/{id}"),
        }
    }
}

/// A text that names no unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no unit: netd, hostd, dcui/tty1, dcui/ttyS0 and vm/<uuid> do")]
pub struct UnitIdError(pub String);

impl FromStr for UnitId {
    type Err = UnitIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "netd" => Self::Netd,
            "hostd" => Self::Hostd,
            "dcui/tty1" => Self::Dcui(Tty::Tty1),
            "dcui/ttyS0" => Self::Dcui(Tty::TtyS0),
            _ => {
                let id = text.strip_prefix("vm/").and_then(|id| Uuid::parse_str(id).ok());
                Self::Vm(id.ok_or_else(|| UnitIdError(text.into()))?)
            }
        })
    }
}

impl Serialize for UnitId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnitId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a unit is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitState {
    /// Its process runs.
    Running,
    /// It was asked to end and has not yet.
    Stopping,
    /// It ended and will be started again.
    Backoff {
        /// In how many milliseconds from this report.
        restart_in_ms: u64,
    },
    /// It ended and stays so.
    Ended,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It could not be started, with this errno.
    NotStarted(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
            Self::NotStarted(errno) => {
                write!(f, "could not be started: {}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

/// One past end of a unit's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// How.
    pub exit: Exit,
    /// When, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// How long it had run, in milliseconds.
    pub ran_ms: u64,
}

/// A unit, as init sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// Its name.
    pub id: UnitId,
    /// What it is doing.
    pub state: UnitState,
    /// Its process, while it runs.
    pub pid: Option<i32>,
    /// When this process was started, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// How often it was started again by itself.
    pub restarts: u32,
    /// Its last ends, newest last, at most eight.
    pub exits: Vec<ExitRecord>,
}

/// What a VM's control group allows; `None` is no limit. Without the controller on this kernel a limit is not enforced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmLimits {
    /// `memory.max`, in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// `pids.max`: threads.
    #[serde(default)]
    pub threads: Option<u32>,
    /// `cpu.weight`, 1 to 10000; 100 is usual.
    #[serde(default)]
    pub cpu_weight: Option<u32>,
    /// `cpu.max`, in percent of one processor.
    #[serde(default)]
    pub cpu_limit_percent: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for id in [
            UnitId::Netd,
            UnitId::Hostd,
            UnitId::Dcui(Tty::Tty1),
            UnitId::Dcui(Tty::TtyS0),
            UnitId::Vm(Uuid::nil()),
        ] {
            assert_eq!(id.to_string().parse::<UnitId>(), Ok(id));
        }
        for wrong in ["", "vm/", "vm/../netd", "dcui", "dcui/tty2", "netd "] {
            assert!(wrong.parse::<UnitId>().is_err(), "{wrong}");
        }
    }
}
