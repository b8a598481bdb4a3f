//! What the console asks hostd to do, and what comes of it.

use keelson_api::{HostPowerAction, LogLine};

use crate::changes::Updates;

/// Something to do, off the thread that draws.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Job {
    /// Is this root's password?
    Verify(String),
    /// Set root's password.
    SetPassword { current: Option<String>, new: String },
    /// Apply changes and restart the management network.
    Apply(Box<Updates>),
    /// Restart the management network.
    RestartNetwork,
    /// Shut down or restart the host.
    Power(HostPowerAction),
    /// Log lines from this number on.
    Logs(u64),
}

impl std::fmt::Debug for Job {
    /// Without passwords: a test that fails prints its jobs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Verify(_) => "Verify",
            Self::SetPassword { .. } => "SetPassword",
            Self::Apply(_) => "Apply",
            Self::RestartNetwork => "RestartNetwork",
            Self::Power(_) => "Power",
            Self::Logs(_) => "Logs",
        })
    }
}

/// Why a job was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The password is not root's.
    WrongPassword,
    /// Anything else, in a sentence or two.
    Other(String),
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    /// It is done.
    Ok,
    /// Log lines.
    Lines(Vec<LogLine>),
}
