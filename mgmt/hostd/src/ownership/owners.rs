//! This host's takes: at most one of a VM is at work, and one that nobody waited for to the end is asked about before the next.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Cause, Claim, Outcome, Record, State, Take, Taking};
use crate::datastores::Directory;

/// What an epoch is to say, beside whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What the VM becomes.
    pub state: State,
    /// Why.
    pub cause: Cause,
    /// The cause in a sentence.
    pub note: Option<String>,
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The store has not told yet. The take goes on.
    #[error("the datastore has not answered yet, so whose the VM is, is open")]
    Open,
    /// There is no thread for it.
    #[error("no thread for a take")]
    NoThread(#[source] std::io::Error),
}

/// The takes of this host.
#[derive(Debug)]
pub struct Owners {
    host_id: Uuid,
    boot_id: String,
    /// Takes at work or left open, by VM.
    at_work: Mutex<BTreeMap<Uuid, Arc<Taking>>>,
    /// VMs whose take came to its end after nobody waited for it any more.
    orphaned: Sender<Uuid>,
}

impl Owners {
    /// For this host, in this boot. VMs whose take ends unheard are sent to `orphaned`.
    pub fn new(host_id: Uuid, boot_id: String, orphaned: Sender<Uuid>) -> Self {
        Self { host_id, boot_id, at_work: Mutex::default(), orphaned }
    }

    /// This host's id.
    pub fn host_id(&self) -> Uuid {
        self.host_id
    }

    /// This boot's id.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Taking>>> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next epoch of the VM in `directory`. Waits at most `limit`, which decides nothing: an outcome that is open then
    /// stays so, and the next take of this VM waits for it first.
    pub fn take(
        &self,
        vm: Uuid,
        directory: &Directory,
        hostname: &str,
        entry: Entry,
        claim: Claim,
        limit: Duration,
    ) -> Result<Outcome, TakeError> {
        let deadline = Instant::now() + limit;
        loop {
            let mut at_work = self.lock();
            if let Some(earlier) = at_work.get(&vm).cloned() {
                drop(at_work);
                earlier.wait(deadline).ok_or(TakeError::Open)?;
                self.over(vm, &earlier);
                continue;
            }
            let record = Record {
                host_id: self.host_id,
                hostname: hostname.into(),
                boot_id: self.boot_id.clone(),
                state: entry.state,
                attempt: Uuid::new_v4(),
                when: jiff::Timestamp::now(),
                cause: entry.cause,
                note: entry.note,
            };
            let take = Take::new(self.host_id, record, claim);
            let orphaned = self.orphaned.clone();
            let taking = directory
                .again()
                .and_then(|directory| {
                    Taking::begin(directory, take, move || {
                        // The receiver lives as long as the process.
                        let _ = orphaned.send(vm);
                    })
                })
                .map_err(TakeError::NoThread)?;
            at_work.insert(vm, Arc::clone(&taking));
            drop(at_work);
            let outcome = taking.wait(deadline).ok_or(TakeError::Open)?;
            self.over(vm, &taking);
            return Ok(outcome);
        }
    }

    /// Waits until no take of the VM is at work, at most `limit`.
    pub fn settled(&self, vm: Uuid, limit: Duration) -> Result<(), TakeError> {
        let deadline = Instant::now() + limit;
        let Some(taking) = self.lock().get(&vm).cloned() else { return Ok(()) };
        taking.wait(deadline).map(drop).ok_or(TakeError::Open)
    }

    fn over(&self, vm: Uuid, taking: &Arc<Taking>) {
        let mut at_work = self.lock();
        if at_work.get(&vm).is_some_and(|current| Arc::ptr_eq(current, taking)) {
            at_work.remove(&vm);
        }
    }
}
