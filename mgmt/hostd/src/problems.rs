//! How failures of the file system and of the other daemons are told to a client: one place chooses the fault for each.

use std::fmt::Display;
use std::io;

use keelson_api::{Fault, Problem};
use keelson_init_control::logging::chain;
use keelson_init_control::{self as init};
use keelson_netcfg_control as netd;
use keelson_vmm_control as vmm;
use keelson_wire::CallError;
use nix::errno::Errno;

/// A file operation on a datastore failed: `doing` is such as "`[datastore1] a` could not be opened".
pub fn file(doing: impl Display, error: &io::Error) -> Problem {
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    let (fault, why, remedy) = match errno {
        Errno::ENOENT => {
            (Fault::NotFound, "there is no such file or directory", "list the datastore's files")
        }
        Errno::ELOOP => (
            Fault::InvalidDatastorePath,
            "it is or leads through a symbolic link, which is not followed",
            "name the file itself",
        ),
        Errno::ENOTDIR => (
            Fault::InvalidDatastorePath,
            "a part of the path is a file or a symbolic link, not a directory",
            "list the datastore's files",
        ),
        Errno::EISDIR => (Fault::InvalidDatastorePath, "it is a directory", "name a file"),
        Errno::EINVAL => (Fault::InvalidDatastorePath, "it is no regular file", "name a regular file"),
        Errno::ENAMETOOLONG => (Fault::InvalidDatastorePath, "the name is too long", "choose a shorter name"),
        Errno::EEXIST => (Fault::DuplicateName, "the name is taken", "choose another name"),
        Errno::ENOTEMPTY => (Fault::FileInUse, "the directory is not empty", "delete what is in it first"),
        Errno::ENOSPC | Errno::EDQUOT => (
            Fault::NoDiskSpace,
            "the datastore is full",
            "delete files that are not needed, or use a larger datastore",
        ),
        Errno::EFBIG => (
            Fault::NoDiskSpace,
            "the file would be larger than the datastore allows",
            "use a smaller file or another datastore",
        ),
        Errno::EROFS => (
            Fault::SystemError,
            "the datastore cannot be written",
            "look at the host's log: its file system was mounted read-only after an error",
        ),
        Errno::EACCES | Errno::EPERM => (
            Fault::SystemError,
            "the host agent may not do that there",
            "all files on a datastore belong to the host agent's user",
        ),
        _ => {
            return Problem::new(Fault::SystemError, format!("{doing}: {error}"))
                .remedy("look at the host's log");
        }
    };
    Problem::new(fault, format!("{doing}: {why}")).remedy(remedy)
}

/// init did not do something.
pub fn init(doing: impl Display, error: &init::Error) -> Problem {
    let why = chain(error);
    let (fault, remedy) = match error {
        CallError::Wire { .. } => {
            (Fault::HostNotReachable, "try again; init answers again as soon as it can")
        }
        CallError::Refused(refusal) => match refusal {
            init::Refusal::NoSuchUnit(_) | init::Refusal::NoSuchDescriptor { .. } => {
                (Fault::InvalidPowerState, "read its state again")
            }
            init::Refusal::Running(_) => (Fault::InvalidPowerState, "power it off first"),
            init::Refusal::BadParameter { .. } | init::Refusal::NotForThisUnit { .. } => {
                (Fault::SystemError, "this is a defect: the host agent asked init for something impossible")
            }
            init::Refusal::GoingDown => (Fault::HostNotReachable, "wait until the host is back"),
            init::Refusal::Failed { .. } => (Fault::SystemError, "look at the host's log"),
            init::Refusal::NotPermitted(_) => {
                (Fault::SystemError, "the host agent must run as its own user under init")
            }
        },
    };
    Problem::new(fault, format!("{doing}: {why}")).remedy(remedy)
}

/// netd did not do something.
pub fn netd(doing: impl Display, error: &netd::Error) -> Problem {
    let why = chain(error);
    let told = |fault, remedy: &str| Problem::new(fault, format!("{doing}: {why}")).remedy(remedy);
    match error {
        CallError::Wire { .. } => {
            told(Fault::HostNotReachable, "try again; init restarts the network daemon")
        }
        CallError::Refused(refusal) => match refusal {
            netd::Refusal::BadConfig(e) => {
                Problem::new(Fault::InvalidArgument, format!("{doing}: {}", e.problem))
                    .field(&e.field)
                    .remedy("correct the field and try again")
            }
            netd::Refusal::Stale { .. } => {
                told(Fault::ConcurrentAccess, "read the network again and repeat the change")
            }
            netd::Refusal::NoSuchPortGroup { .. } => {
                told(Fault::NotFound, "choose one of the port groups that exist")
            }
            netd::Refusal::NotSupported(_) => {
                told(Fault::NotSupported, "this host's kernel lacks the feature")
            }
            netd::Refusal::Failed { .. } => {
                told(Fault::SystemError, "the previous network is in force; look at the host's log")
            }
            netd::Refusal::NotSaved(_) => {
                told(Fault::SystemError, "free space on the state partition, then repeat the change")
            }
            netd::Refusal::NotPermitted(_) => {
                told(Fault::SystemError, "the host agent must run as its own user under init")
            }
        },
    }
}

/// A VM's monitor did not do something.
pub fn monitor(doing: impl Display, error: &vmm::Error) -> Problem {
    let why = chain(error);
    let (fault, remedy) = match error {
        CallError::Wire { .. } => {
            (Fault::HostNotReachable, "read the VM's state again; power it off if it does not answer")
        }
        CallError::Refused(vmm::Refusal::WrongState { .. }) => {
            (Fault::InvalidPowerState, "read the VM's state again")
        }
        CallError::Refused(vmm::Refusal::Failed(_)) => (Fault::SystemError, "look at the VM's log"),
    };
    Problem::new(fault, format!("{doing}: {why}")).remedy(remedy)
}

/// A field of a request has a value that it cannot have.
pub fn argument(field: impl Into<String>, detail: impl Into<String>, remedy: &str) -> Problem {
    Problem::new(Fault::InvalidArgument, detail).field(field).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_store_is_507_and_says_what_to_do() {
        let told = file("`[d] a` could not be written", &Errno::ENOSPC.into());
        assert_eq!((told.status, told.fault), (507, Fault::NoDiskSpace));
        assert!(told.remedy.is_some());
    }

    #[test]
    fn netds_field_reaches_the_client() {
        let refusal = netd::Refusal::BadConfig(netd::ConfigError {
            field: "dns.servers".into(),
            problem: "too many".into(),
        });
        let told = netd("the network could not be changed", &CallError::Refused(refusal));
        assert_eq!((told.status, told.field.as_deref()), (400, Some("dns.servers")));
    }
}
