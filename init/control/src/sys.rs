//! Descriptors that came across exec become owned, once in a process.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::fds::FdsError;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Owns the numbered descriptors and marks them close-on-exec.
pub(crate) fn adopt(numbers: &[(String, i32)]) -> Result<BTreeMap<String, OwnedFd>, FdsError> {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(FdsError::Taken);
    }
    let mut seen = BTreeSet::new();
    for (name, number) in numbers {
        let not_open = || FdsError::NotOpen { name: name.clone(), number: *number };
        if *number < 3 || !seen.insert(*number) {
            return Err(not_open());
        }
        // SAFETY: F_SETFD takes no pointer; on a number that is not open it fails with EBADF and changes nothing.
        if unsafe { libc::fcntl(*number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return Err(not_open());
        }
    }
    let own = |(name, number): &(String, i32)| {
        // SAFETY: the number is open (F_SETFD above succeeded), is no standard stream, occurs once in the list (`seen`), and the
        // list is adopted once in a process (`TAKEN`); init hands descriptors to this process for its own use, so no other
        // part of it owns them.
        (name.clone(), unsafe { OwnedFd::from_raw_fd(*number) })
    };
    Ok(numbers.iter().map(own).collect())
}
