//! A machine's whole state as sections: what is collected from a paused machine, and what a new one is built from.
//!
//! - [`sections`] encodes and decodes them. It knows no file: the same bytes can go into a file or over a stream.
//! - [`identity`] is the section that says for which machine a state is.
//! - [`file`] is the state file: a header that says whether the state was used, then the sections.
//! - [`memory`] is the memory file: what the guest has touched, and holes. [`fill`] brings it back while the guest runs.

pub mod file;
pub mod fill;
pub mod identity;
pub mod memory;
pub mod sections;

#[cfg(test)]
mod contract;
#[cfg(test)]
pub(crate) mod golden;

use std::io;

use crate::devices::saved::BadState;

/// Why a state cannot be written, read or used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A system call.
    #[error("could not {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is none of ours.
    #[error("the {file} does not begin as one: it is another file, or was never finished")]
    NotOurs {
        /// Which file.
        file: &'static str,
    },
    /// A format that this monitor does not know.
    #[error(
        "the state file has format {found}, this monitor reads {known}: it was written by another release"
    )]
    Format {
        /// The file's.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// It was used before.
    #[error(
        "the state was used before: its machine has gone on since, and so have its disks; power the machine on instead"
    )]
    Used,
    /// Somebody else is about to use it.
    #[error("another process is bringing a machine back from this state")]
    Busy,
    /// It ends early.
    #[error("the state ends within {place}: it was cut off")]
    Truncated {
        /// Where.
        place: String,
    },
    /// Bytes changed.
    #[error("{place} is damaged: its checksum is wrong")]
    Damaged {
        /// What.
        place: String,
    },
    /// A length or number beyond every bound.
    #[error("{what} is {found}; at most {most} is possible")]
    TooMuch {
        /// What.
        what: &'static str,
        /// What was found.
        found: u64,
        /// The bound.
        most: u64,
    },
    /// A section's name is none.
    #[error("a section has a name that none of ours has")]
    BadKind,
    /// Two sections of one name.
    #[error("the section {kind} {instance} is there twice")]
    Twice {
        /// Its kind.
        kind: String,
        /// Its instance.
        instance: u32,
    },
    /// A section that the machine needs.
    #[error("the section {kind} {instance} is missing: the state is of a machine with other devices")]
    Missing {
        /// Its kind.
        kind: String,
        /// Its instance.
        instance: u32,
    },
    /// A section that the machine has no place for.
    #[error("there is a section {kind} {instance}, but the machine has no such device")]
    Unexpected {
        /// Its kind.
        kind: String,
        /// Its instance.
        instance: u32,
    },
    /// A section with a state that cannot be.
    #[error("the section {kind} {instance} cannot be taken: {source}")]
    Bad {
        /// Its kind.
        kind: String,
        /// Its instance.
        instance: u32,
        /// The field, and what is wrong with it.
        source: BadState,
    },
    /// The state is of another machine.
    #[error("the state is of a machine whose {what} is {saved}, this machine's is {here}")]
    Differs {
        /// What differs.
        what: &'static str,
        /// As saved.
        saved: String,
        /// As configured.
        here: String,
    },
    /// State and memory were not saved together.
    #[error("the memory file does not belong to the state file: they were not saved together")]
    OtherMemory,
}

impl StateError {
    /// Says what was being done when a system call failed.
    pub(crate) fn doing(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// A refusal by what a section belongs to.
    pub(crate) fn bad(kind: &str, instance: u32, source: BadState) -> Self {
        Self::Bad { kind: kind.into(), instance, source }
    }
}
