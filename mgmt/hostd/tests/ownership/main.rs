//! The register on real file systems: hosts that race on a local one, and hosts that share one which hangs, loses replies and makes
//! links late.
#![allow(clippy::unwrap_used, clippy::panic)]

mod faults;
mod race;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keelson_hostd::datastores::Directory;
use keelson_hostd::ownership::{Cause, Claim, Outcome, Record, State, Take, Taking, register};
use uuid::Uuid;

/// Begins a take of the host of that number.
pub(crate) fn begin(directory: &Path, host: u128, state: State, claim: Claim) -> Arc<Taking> {
    let host_id = Uuid::from_u128(host);
    let record = Record {
        host_id,
        hostname: format!("host{host}"),
        boot_id: "boot".into(),
        state,
        attempt: Uuid::new_v4(),
        when: jiff::Timestamp::now(),
        cause: Cause::PowerOn,
        note: None,
    };
    let directory = Directory::root(directory).unwrap();
    Taking::begin(directory, Take::new(host_id, record, claim), || {}).unwrap()
}

/// Waits for an outcome that must come.
pub(crate) fn end(taking: &Taking) -> Outcome {
    taking.wait(Instant::now() + Duration::from_secs(60)).unwrap_or_else(|| panic!("the outcome stays open"))
}

/// A whole take.
pub(crate) fn take(directory: &Path, host: u128, state: State) -> Outcome {
    end(&begin(directory, host, state, Claim::Own))
}

/// The epochs from the first: host and state.
pub(crate) fn epochs(directory: &Path) -> Vec<(u128, State)> {
    let history = register::history(&Directory::root(directory).unwrap(), usize::MAX).unwrap();
    let numbers = history.iter().rev().map(|(epoch, _)| epoch.number());
    assert!(numbers.eq(1..=history.len() as u64), "an epoch is missing");
    let records = history.into_iter().rev().map(|(_, reading)| reading.unwrap());
    records.map(|record| (record.host_id.as_u128(), record.state)).collect()
}
