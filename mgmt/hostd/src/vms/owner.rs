//! Whose a VM is: an epoch of its register is taken around each run, and where the register and init differ, one of them is put right.

use std::time::Duration;

use keelson_api::{EpochCause, Fault, OwnerState, Problem, VmEpoch};
use keelson_init_control::{Request as InitRequest, UnitId, UnitState};
use uuid::Uuid;

use super::{Entry, Vms};
use crate::datastores::{DatastorePath, Directory};
use crate::ownership::{
    Cause, Claim, Epoch, Highest, Outcome, Proof, Reading, Record, Refusal, State, TakeError, register,
};
use crate::{ownership, problems};

/// How long a task waits for a take. What is open then is settled later.
const TAKE: Duration = Duration::from_secs(30);
/// How long the thread that releases VMs waits for one: it has others to look after.
const RELEASE: Duration = Duration::from_secs(5);
/// What to do about a record that cannot be used.
const DAMAGED: &str =
    "restore the file; or, if the VM runs on no host, power it on with `force`, which states so";

impl Vms {
    /// The register's highest epoch.
    pub(super) fn owner(&self, directory: &DatastorePath) -> Result<Highest, Problem> {
        highest(&self.home(directory)?, directory)
    }

    /// The last `most` epochs of a VM, the latest first.
    pub fn history(&self, id: Uuid, most: usize) -> Result<Vec<VmEpoch>, Problem> {
        let directory = self.inventory.get(id)?.directory;
        let history = register::history(&self.home(&directory)?, most).map_err(|e| unread(&directory, &e))?;
        Ok(history.into_iter().map(|(epoch, reading)| shown(epoch, reading)).collect())
    }

    /// Refused when another host runs the VM, or nobody can tell whether one does.
    pub(super) fn must_be_nobody_elses(&self, name: &str, directory: &DatastorePath) -> Result<(), Problem> {
        match self.owner(directory)? {
            Some((epoch, Ok(owner))) if self.is_another(&owner) => Err(held(name, epoch, &owner)),
            Some((epoch, Err(damage))) => Err(damaged(name, epoch, &damage)),
            _ => Ok(()),
        }
    }

    fn is_another(&self, owner: &Record) -> bool {
        owner.state == State::Running && owner.host_id != self.owners.host_id()
    }

    /// Whether the register says that another host runs the VM, or may.
    pub(super) fn is_elsewhere(&self, highest: &Highest) -> bool {
        matches!(highest, Some((_, Ok(owner))) if self.is_another(owner))
    }

    /// By what right a VM can be powered on. With `force` the caller has stated that its present owner is off.
    pub(super) fn right_to_run(&self, name: &str, entry: &Entry, force: bool) -> Result<Claim, Problem> {
        match self.owner(&entry.directory)? {
            Some((epoch, Ok(owner))) if self.is_another(&owner) && force => Ok(Claim::Force { epoch }),
            Some((epoch, Err(_))) if force => Ok(Claim::Force { epoch }),
            _ => self.must_be_nobody_elses(name, &entry.directory).map(|()| Claim::Own),
        }
    }

    fn take(
        &self,
        id: Uuid,
        directory: &DatastorePath,
        entry: ownership::Entry,
        claim: Claim,
        limit: Duration,
    ) -> Result<Outcome, Problem> {
        let home = self.home(directory)?;
        self.owners
            .take(id, &home, &self.agent.hostname(), entry, claim, limit)
            .map_err(|e| no_outcome(directory, &e))
    }

    /// Waits until no take of the VM is at work: a VM whose owner is open is not deleted under it.
    pub(super) fn must_be_settled(&self, id: Uuid, directory: &DatastorePath) -> Result<(), Problem> {
        self.owners.settled(id, TAKE).map_err(|e| no_outcome(directory, &e))
    }

    /// Takes the VM, so that it may be started.
    pub(super) fn take_running(
        &self,
        id: Uuid,
        name: &str,
        directory: &DatastorePath,
        claim: Claim,
        who: &str,
    ) -> Result<Proof, Problem> {
        let entry = match &claim {
            Claim::Force { epoch } => ownership::Entry {
                state: State::Running,
                cause: Cause::Forced,
                note: Some(format!("{who} stated that the owner of epoch {epoch} is off.")),
            },
            Claim::Own | Claim::OwnAt { .. } | Claim::Move(_) => {
                ownership::Entry { state: State::Running, cause: Cause::PowerOn, note: None }
            }
        };
        let changed = || {
            Problem::new(Fault::ConcurrentAccess, format!("the owner of {name} has changed meanwhile"))
                .remedy("read the VM again, then decide again")
        };
        match self.take(id, directory, entry, claim, TAKE)? {
            Outcome::Won(proof) => {
                log::info!("{name} is this host's: epoch {}", proof.epoch());
                Ok(proof)
            }
            Outcome::Lost { epoch, to: Ok(owner) } if self.is_another(&owner) => {
                Err(held(name, epoch, &owner))
            }
            Outcome::Lost { to: Ok(_), .. } | Outcome::Refused(Refusal::Changed | Refusal::NotRunning) => {
                Err(changed())
            }
            Outcome::Lost { epoch, to: Err(damage) }
            | Outcome::Refused(Refusal::Damaged { epoch, damage }) => Err(damaged(name, epoch, &damage)),
            Outcome::Refused(Refusal::HeldBy { epoch, owner }) => Err(held(name, epoch, &owner)),
            Outcome::Refused(refusal @ Refusal::LastEpoch { .. }) => {
                Err(Problem::new(Fault::SystemError, format!("{name} cannot be taken: {refusal}"))
                    .remedy("nobody has come this far by power-ons: look at the files `owner.*` of the VM"))
            }
            Outcome::NotTaken(trouble) => Err(not_taken(name, trouble)),
            Outcome::NotDurable { trouble, .. } => {
                self.leave(id, name, directory, "It was not started: its ownership could not be flushed.");
                Err(not_taken(name, trouble))
            }
        }
    }

    /// Takes `off` after a power-on that has failed with nothing running. Where that fails it is tried again later.
    pub(super) fn leave(&self, id: Uuid, name: &str, directory: &DatastorePath, note: &str) {
        let left = self.owner(directory).and_then(|highest| match highest {
            Some((epoch, Ok(owner))) if self.is_ours(&owner) => {
                self.take_off(id, name, directory, epoch, note, TAKE)
            }
            _ => Ok(()),
        });
        if let Err(problem) = left {
            log::warn!("{name} is not given up yet: {problem}");
            // The receiver lives as long as the process.
            let _ = self.tended.send(id);
        }
    }

    fn is_ours(&self, owner: &Record) -> bool {
        owner.state == State::Running && owner.host_id == self.owners.host_id()
    }

    /// Ends this host's epoch.
    fn take_off(
        &self,
        id: Uuid,
        name: &str,
        directory: &DatastorePath,
        epoch: Epoch,
        note: &str,
        limit: Duration,
    ) -> Result<(), Problem> {
        let entry =
            ownership::Entry { state: State::Off, cause: Cause::PowerOff, note: Some(note.to_owned()) };
        match self.take(id, directory, entry, Claim::OwnAt { epoch }, limit)? {
            Outcome::Won(_) => Ok(()),
            Outcome::NotDurable { trouble, .. } => {
                // A power cut may bring the epoch back. Then it is one of an earlier boot with nothing running.
                log::warn!("that {name} is off is not flushed: {}", trouble.error());
                Ok(())
            }
            Outcome::NotTaken(trouble) => Err(not_taken(name, trouble)),
            // Whoever found it off may take it at once.
            other @ (Outcome::Refused(_) | Outcome::Lost { .. }) => {
                log::info!("{name} has another owner meanwhile: {other:?}");
                Ok(())
            }
        }
    }

    /// After the run of a VM whose process has ended: gives it up. Returns how the run ended, if the register knows better.
    pub(super) fn give_up(&self, id: Uuid, entry: &Entry, exit: &str) -> Result<Option<String>, Problem> {
        let name = entry.name(id);
        let highest = match self.owner(&entry.directory) {
            // Its directory was removed under it.
            Err(problem) if problem.fault == Fault::NotFound => None,
            other => other?,
        };
        match highest {
            Some((epoch, Ok(owner))) if self.is_ours(&owner) => {
                self.take_off(id, &name, &entry.directory, epoch, exit, RELEASE).map(|()| None)
            }
            Some((epoch, Ok(owner))) if self.is_another(&owner) => Ok(Some(format!(
                "It was ended, since the host {} had taken it over (epoch {epoch}): {exit}",
                owner.hostname
            ))),
            Some((epoch, Err(damage))) => {
                log::error!(
                    "{name} is off, and its owner's record of epoch {epoch} cannot be used: {damage}"
                );
                Ok(None)
            }
            Some(_) | None => Ok(None),
        }
    }

    /// A VM's process lives: the register must say that it is this host's. What it says for certain is obeyed: of two copies of a
    /// VM the one without an owner's record ends.
    pub(super) fn confirm(&self, id: Uuid) -> Result<(), Problem> {
        let Ok(entry) = self.inventory.get(id) else { return Ok(()) };
        match self.owner(&entry.directory)? {
            Some((_, Ok(owner))) if self.is_ours(&owner) => Ok(()),
            Some((epoch, Ok(owner))) => {
                log::error!(
                    "{} runs here, but epoch {epoch} is of the host {} ({}), {:?}: it is ended",
                    entry.name(id),
                    owner.hostname,
                    owner.host_id,
                    owner.state
                );
                self.units.tell(
                    "a VM of another owner could not be ended",
                    &InitRequest::Kill { unit: UnitId::Vm(id) },
                )
            }
            Some((epoch, Err(damage))) => {
                log::error!(
                    "{} runs, and its record of epoch {epoch} cannot be used: {damage}",
                    entry.name(id)
                );
                Ok(())
            }
            None => {
                log::error!("{} runs, and its directory has no owner's record", entry.name(id));
                Ok(())
            }
        }
    }

    /// A VM has no process: where the register says that this host runs it, the host went down under it, or the host agent ended
    /// or gave up between taking and starting it.
    pub(super) fn reconcile(&self, id: Uuid) -> Result<(), Problem> {
        let Ok(entry) = self.inventory.get(id) else { return Ok(()) };
        let highest = match self.owner(&entry.directory) {
            Err(problem) if problem.fault == Fault::NotFound => return Ok(()),
            other => other?,
        };
        let Some((epoch, Ok(owner))) = highest else { return Ok(()) };
        if !self.is_ours(&owner) {
            return Ok(());
        }
        // In this order: a power-on that took this epoch is admitted until the VM is among the units, or it has given up.
        if self.is_admitted(id) {
            return Err(Problem::new(Fault::TaskInProgress, "it is being powered on"));
        }
        if self.units.vm(id)?.is_some() {
            return Ok(());
        }
        let name = entry.name(id);
        let exit = entry.last_run.as_ref().filter(|run| run.started >= owner.when);
        let note = match exit.and_then(|run| run.exit.as_deref()) {
            Some(exit) => exit,
            None if owner.boot_id != self.owners.boot_id() => "The host went down while it ran.",
            None => "It ended, or was not started, while the host agent was not there.",
        };
        log::warn!("{name} does not run, and epoch {epoch} says that it does: {note}");
        self.take_off(id, &name, &entry.directory, epoch, note, RELEASE)
    }

    /// After init was asked to start a VM and did not say that it has: it may have all the same. Nothing may be left running when
    /// `off` is taken.
    pub(super) fn not_started(&self, id: Uuid, name: &str, directory: &DatastorePath, why: &Problem) {
        let unit = self
            .units
            .ask("the units could not be listed", |c| c.units())
            .map(|units| units.into_iter().any(|u| u.id == UnitId::Vm(id) && u.state != UnitState::Ended));
        match unit {
            Ok(false) => self.leave(id, name, directory, &format!("It was not started: {why}")),
            // Its end brings `off`.
            Ok(true) => {
                let killed =
                    self.units.tell("it could not be killed", &InitRequest::Kill { unit: UnitId::Vm(id) });
                if let Err(problem) = killed {
                    log::warn!("{name}: {problem}");
                }
            }
            Err(problem) => {
                log::warn!("{name} is not given up before init is heard again: {problem}");
                let _ = self.tended.send(id);
            }
        }
    }
}

/// An epoch as the API shows it.
pub(super) fn shown(epoch: Epoch, reading: Reading) -> VmEpoch {
    let epoch = epoch.number();
    match reading {
        Ok(record) => VmEpoch {
            epoch,
            state: match record.state {
                State::Running => OwnerState::Running,
                State::Suspended => OwnerState::Suspended,
                State::Off => OwnerState::Off,
            },
            host_id: Some(record.host_id),
            hostname: Some(record.hostname),
            cause: Some(match record.cause {
                Cause::PowerOn => EpochCause::PowerOn,
                Cause::PowerOff => EpochCause::PowerOff,
                Cause::Suspend => EpochCause::Suspend,
                Cause::Move => EpochCause::Move,
                Cause::GiveBack => EpochCause::GiveBack,
                Cause::Forced => EpochCause::Forced,
            }),
            note: record.note,
            when: Some(record.when),
        },
        Err(damage) => VmEpoch {
            epoch,
            state: OwnerState::Unreadable,
            host_id: None,
            hostname: None,
            cause: None,
            note: Some(damage.to_string()),
            when: None,
        },
    }
}

fn highest(home: &Directory, directory: &DatastorePath) -> Result<Highest, Problem> {
    register::highest(home).map_err(|e| unread(directory, &e))
}

fn unread(directory: &DatastorePath, error: &std::io::Error) -> Problem {
    problems::file(format!("the owner files in `{directory}` could not be read"), error)
}

fn no_outcome(directory: &DatastorePath, error: &TakeError) -> Problem {
    let detail = format!("`{directory}`: {}", keelson_init_control::logging::chain(error));
    match error {
        TakeError::Open => Problem::new(Fault::OwnershipOpen, detail).remedy(
            "see whether the datastore can be reached; it is settled when that answers, then try again",
        ),
        TakeError::NoThread(_) => Problem::new(Fault::SystemError, detail).remedy("try again"),
    }
}

fn not_taken(name: &str, trouble: ownership::Trouble) -> Problem {
    problems::file(format!("the ownership of {name} could not be written"), &trouble.error())
}

fn held(name: &str, epoch: Epoch, owner: &Record) -> Problem {
    let detail = format!(
        "{name} belongs to the host {} ({}), which runs it since {} (epoch {epoch})",
        owner.hostname, owner.host_id, owner.when
    );
    Problem::new(Fault::OwnedByAnotherHost, detail).remedy(format!(
        "use it there; or, if {} is switched off and stays so, power it on with `force`, which states that",
        owner.hostname
    ))
}

fn damaged(name: &str, epoch: Epoch, damage: &ownership::Damage) -> Problem {
    let detail = format!(
        "nobody can tell whether {name} runs: the record of its epoch {epoch} cannot be used: {damage}"
    );
    let remedy = match damage {
        ownership::Damage::Newer { .. } => "use a host of the version that wrote it, or a newer one",
        _ => DAMAGED,
    };
    Problem::new(Fault::OwnerRecordDamaged, detail).remedy(remedy)
}
