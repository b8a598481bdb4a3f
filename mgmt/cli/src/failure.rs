//! What went wrong, how it is told and which exit code it becomes.

use std::error::Error;

use keelson_api::client::ClientError;
use keelson_api::{Fault, Task};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    NotLoggedIn(String),
    #[error("{what}")]
    Local {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{} of {} failed: {}", .0.name, .0.target, .0.error.as_ref().map_or(&.0.message, |e| &e.detail))]
    TaskFailed(Box<Task>),
    #[error("the output was closed")]
    OutputClosed,
}

impl Failure {
    /// A failure on this machine.
    pub(crate) fn local(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Local { what: what.into(), source }
    }

    /// The process's exit code: documented in docs/keelctl.md and `--help`.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::NotLoggedIn(_) => 4,
            Self::Client(ClientError::Problem(problem)) => match problem.fault {
                Fault::NotFound => 3,
                Fault::NotAuthenticated | Fault::PasswordNotSet => 4,
                _ => 1,
            },
            Self::Client(ClientError::BadHost { .. }) => 2,
            Self::Client(
                ClientError::Unreachable { .. }
                | ClientError::NoAnswer { .. }
                | ClientError::NotKeelson { .. },
            ) => 5,
            Self::Client(ClientError::FingerprintMismatch { .. }) => 6,
            Self::Local { .. } | Self::TaskFailed(_) | Self::Client(ClientError::Local { .. }) => 1,
        }
    }

    /// What is printed: what failed, why, and what to do.
    pub(crate) fn text(&self) -> String {
        let problem = match self {
            Self::Client(ClientError::Problem(problem)) => Some(&**problem),
            Self::TaskFailed(task) => task.error.as_ref(),
            _ => None,
        };
        let mut text = match (self, problem) {
            (Self::Client(ClientError::Problem(_)), Some(problem)) => {
                format!("{}: {}", problem.title, problem.detail)
            }
            _ => self.to_string(),
        };
        let mut cause = self.source();
        while let Some(e) = cause {
            let next = e.to_string();
            if !text.ends_with(&next) {
                text.push_str(&format!("\n  because: {next}"));
            }
            cause = e.source();
        }
        if let Some(problem) = problem {
            if let Some(field) = &problem.field {
                text.push_str(&format!("\n  field:   {field}"));
            }
            // The API's own remedy speaks of requests.
            let login = (problem.fault == Fault::NotAuthenticated)
                .then_some("log in with `keelctl login HOST`, with root's password");
            if let Some(remedy) = login.or(problem.remedy.as_deref()) {
                text.push_str(&format!("\n  to do:   {remedy}"));
            }
            text.push_str(&format!("\n  fault:   {:?}", problem.fault));
        }
        text
    }
}
