//! After a VM's process has ended: how it ended is written down, everything that it held is released, and its ownership is given
//! up. One thread does this for all VMs, also for those that ended while the host agent was not there, and compares for each what
//! init and its register say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use keelson_api::Problem;
use keelson_init_control::{Exit, Refusal, Request, UnitId, UnitState, UnitStatus};
use keelson_vmm_control::ExitCode;
use keelson_wire::CallError;
use uuid::Uuid;

use super::Vms;
use super::document::{LastRun, SCHEMA};
use crate::datastores::DatastorePath;
use crate::problems;

/// How many lines of a VM's log are looked at for its last error.
const LINES: u32 = 1000;
/// After what time a release that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

impl Vms {
    /// Takes care of all VMs once, and then of those that `ended` names, on a thread of its own.
    pub fn tend(self: &Arc<Self>, ended: Receiver<Uuid>) -> std::io::Result<()> {
        for (id, _) in self.inventory.all() {
            // The receiver is in our hands.
            let _ = self.tended.send(id);
        }
        let vms = Arc::clone(self);
        std::thread::Builder::new().name("ended".into()).spawn(move || {
            let mut failed = BTreeSet::new();
            let mut told = BTreeSet::new();
            loop {
                // With nothing left over, only the next end matters; else it is tried again after a while.
                let next = if failed.is_empty() {
                    ended.recv().map_err(|_| RecvTimeoutError::Disconnected)
                } else {
                    ended.recv_timeout(AGAIN)
                };
                let ids = match next {
                    Ok(id) => BTreeSet::from([id]),
                    Err(RecvTimeoutError::Timeout) => std::mem::take(&mut failed),
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                for id in ids {
                    if let Err(problem) = vms.look_after(id) {
                        if told.insert(id) {
                            log::warn!("the VM {id} is looked after again, until it succeeds: {problem}");
                        }
                        failed.insert(id);
                    } else {
                        failed.remove(&id);
                        told.remove(&id);
                    }
                }
            }
        })?;
        Ok(())
    }

    fn look_after(&self, id: Uuid) -> Result<(), Problem> {
        match self.units.vm(id)? {
            Some(unit) if unit.state == UnitState::Ended => self.release(id, &unit),
            Some(_) => self.confirm(id),
            None => self.reconcile(id),
        }
    }

    fn release(&self, id: Uuid, unit: &UnitStatus) -> Result<(), Problem> {
        let entry = self.inventory.get(id).ok();
        let mut exit = self.sentence(unit);
        // First: whoever sees the VM off can take it.
        if let Some(entry) = &entry
            && let Some(known) = self.give_up(id, entry, &exit)?
        {
            exit = known;
        }
        if let Some(entry) = &entry {
            log::info!("VM {id} ended: {exit}");
            let now = unit
                .exits
                .last()
                .and_then(|e| i64::try_from(e.time_ms).ok())
                .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
                .unwrap_or_else(jiff::Timestamp::now);
            let run = entry.last_run.clone().unwrap_or_else(|| LastRun {
                schema: SCHEMA,
                host_id: self.agent.host_id(),
                boot_id: self.boot_id.clone(),
                started: i64::try_from(unit.started_ms)
                    .ok()
                    .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
                    .unwrap_or(now),
                ended: None,
                exit: None,
            });
            self.put_down(id, &entry.directory, LastRun { ended: Some(now), exit: Some(exit), ..run });
        }
        if let Err(problem) = self.netd.ask("its adapters could not be removed", |c| c.close_taps(id)) {
            // Taps vanish with their last descriptor, which the monitor had.
            log::info!("VM {id}: {problem}");
        }
        let kept =
            self.units.ask("the kept descriptors could not be listed", keelson_init_control::Client::kept)?;
        for kept in kept.into_iter().filter(|k| k.unit == UnitId::Vm(id)) {
            self.rid(
                "a kept descriptor could not be released",
                &Request::Release { unit: kept.unit, name: kept.name },
            )?;
        }
        self.rid("the unit could not be forgotten", &Request::Forget { unit: UnitId::Vm(id) })?;
        self.units.forgotten(UnitId::Vm(id));
        Ok(())
    }

    /// Has init let go of something. What it does not have it let go of before, and the answer was lost.
    fn rid(&self, doing: &str, request: &Request) -> Result<(), Problem> {
        match self.units.call(|c| c.tell(request)) {
            Ok(()) | Err(CallError::Refused(Refusal::NoSuchDescriptor { .. } | Refusal::NoSuchUnit(_))) => {
                Ok(())
            }
            Err(error) => Err(problems::init(doing, &error)),
        }
    }

    /// Writes down how a VM ran. What cannot be written is at least remembered until the host agent ends.
    pub(super) fn put_down(&self, id: Uuid, directory: &DatastorePath, run: LastRun) {
        let written = self.home(directory).and_then(|home| run.store(&home, &directory.to_string()));
        if let Err(problem) = written {
            log::warn!("how the VM {id} ran is not written down: {problem}");
        }
        self.inventory.ran(id, run);
    }

    /// How a unit ended, in one sentence.
    fn sentence(&self, unit: &UnitStatus) -> String {
        let Some(record) = unit.exits.last() else { return "Its monitor ended; how is not known.".into() };
        let why = || self.last_error(unit.id).map_or(String::new(), |line| format!(": {line}"));
        match record.exit {
            Exit::Code(code) if code == ExitCode::GuestOff as i32 => "The guest switched itself off.".into(),
            Exit::Code(code) if code == ExitCode::Killed as i32 => "It was powered off.".into(),
            Exit::Code(code) if code == ExitCode::Suspended as i32 => "It was suspended.".into(),
            Exit::Code(code) if code == ExitCode::BadConfig as i32 => {
                format!("Its monitor could not run the machine{}", why())
            }
            Exit::Code(code) if code == ExitCode::Fault as i32 => format!("The machine failed{}", why()),
            exit @ (Exit::Code(_) | Exit::Signal(_)) => format!("Its monitor {exit}{}", why()),
            exit @ Exit::NotStarted(_) => format!("Its monitor {exit}"),
        }
    }

    /// The last error that a unit logged.
    fn last_error(&self, unit: UnitId) -> Option<String> {
        let lines =
            self.units.ask("the log could not be read", |c| c.logs(0, LINES, Some(unit.to_string()))).ok()?;
        let line = lines.into_iter().rev().find(|l| l.priority <= 3)?;
        Some(line.text)
    }
}
