//! Why a call brought no answer.

use std::error::Error;

use super::Fingerprint;
use super::connect::Mismatch;
use crate::{Fault, Problem};

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The host shows another certificate than the one it was trusted for: it is another host, or somebody stands between.
    #[error(
        "THE CERTIFICATE OF {host} HAS CHANGED.\n  trusted: {expected}\n  shown:   {found}\nSomebody may be reading along, or the \
         host was installed anew. Nothing was sent to it. Compare the fingerprint on the host's console screen; if it is the one \
         shown, log in again to trust it"
    )]
    FingerprintMismatch {
        /// The host.
        host: String,
        /// The fingerprint it was trusted for.
        expected: Fingerprint,
        /// The fingerprint it shows.
        found: Fingerprint,
    },
    /// No connection came about; nothing was sent.
    #[error("{host} cannot be reached ({request}): {remedy}")]
    Unreachable {
        /// The host.
        host: String,
        /// What was to be asked.
        request: String,
        /// What to do.
        remedy: String,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The connection broke, or the answer did not come in time: whether the request was carried out is not known.
    #[error(
        "{host} did not answer {request}; whether it was carried out is not known, so look before repeating it"
    )]
    NoAnswer {
        /// The host.
        host: String,
        /// What was asked.
        request: String,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Whoever answers there does not speak this API, or another version of it.
    #[error("{host} does not answer as a Keelson host of this version does: {why}")]
    NotKeelson {
        /// The host.
        host: String,
        /// What is odd.
        why: String,
    },
    /// The host refused, and says why.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// Something on this side failed: a file that was to be sent or written.
    #[error("{what}")]
    Local {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// This is no host's name or address.
    #[error("`{host}` is no host: {why}; write NAME, NAME:PORT, ADDRESS or ADDRESS:PORT")]
    BadHost {
        /// As written.
        host: String,
        /// What is wrong.
        why: String,
    },
}

/// Whom was asked what, for messages.
pub(super) struct Doing {
    pub(super) host: String,
    pub(super) request: String,
}

impl ClientError {
    /// The fault, if the host refused.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Problem(problem) => Some(problem.fault),
            _ => None,
        }
    }

    pub(super) fn not_sendable(doing: &Doing, source: ureq::http::Error) -> Self {
        Self::Unreachable {
            host: doing.host.clone(),
            request: doing.request.clone(),
            remedy: "the request cannot be written as HTTP; a token must be one line of printable characters"
                .into(),
            source: Box::new(source),
        }
    }

    pub(super) fn of(doing: &Doing, error: ureq::Error) -> Self {
        let (host, request) = (doing.host.clone(), doing.request.clone());
        match error {
            ureq::Error::Other(inner) => match inner.downcast::<Connecting>() {
                Ok(connecting) => match *connecting {
                    Connecting::Mismatch(Mismatch { expected, found }) => {
                        Self::FingerprintMismatch { host, expected, found }
                    }
                    Connecting::Failed { remedy, source } => {
                        Self::Unreachable { host, request, remedy: remedy.into(), source: Box::new(source) }
                    }
                },
                Err(inner) => Self::NoAnswer { host, request, source: inner },
            },
            error @ ureq::Error::HostNotFound => Self::Unreachable {
                host,
                request,
                remedy: "its name is not known here; check it, or give its address".into(),
                source: Box::new(error),
            },
            error @ (ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect)
            | ureq::Error::ConnectionFailed) => Self::Unreachable {
                host,
                request,
                remedy: "it did not answer in time; check that it is on and on this network".into(),
                source: Box::new(error),
            },
            error @ ureq::Error::Protocol(_) => {
                Self::NotKeelson { host, why: format!("its answer to {request} is not HTTP: {error}") }
            }
            error => Self::NoAnswer { host, request, source: Box::new(error) },
        }
    }
}

/// Why the connector brought no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Connecting {
    #[error("the certificate is not the trusted one")]
    Mismatch(Mismatch),
    #[error("{remedy}")]
    Failed {
        remedy: &'static str,
        #[source]
        source: std::io::Error,
    },
}
