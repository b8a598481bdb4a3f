//! What is decided about ownership, without doing anything: who may take which epoch, and what follows from each answer of the store.
//!
//! A [`Take`] asks for one step at a time and is told the store's answer. It never concludes from silence or time: after its link was
//! issued it ends only when it has read back whose the epoch is.

use std::io;

use nix::errno::Errno;
use uuid::Uuid;

use super::{Damage, Epoch, Record, State};

/// An owner file's record, or why it has none that can be used.
pub type Reading = Result<Record, Damage>;
/// The highest epoch of a VM; `None` for a VM that never ran.
pub type Highest = Option<(Epoch, Reading)>;

/// By what right an epoch is taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Claim {
    /// Everybody's: of a VM that nobody runs, or that the taker itself runs.
    Own,
    /// As [`Claim::Own`], while the epoch that the taker has seen is still the highest.
    OwnAt {
        /// That epoch.
        epoch: Epoch,
    },
    /// The running owner has handed the VM over.
    Move(Handover),
    /// An operator has stated that the owner of exactly this epoch is off.
    Force {
        /// The epoch that the operator spoke of.
        epoch: Epoch,
    },
}

/// The proof of a move: the source has stopped the VM and said that the target may take the next epoch. Only who has received the
/// source's `Commit` makes one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Handover {
    source: Uuid,
    epoch: Epoch,
}

impl Handover {
    /// What `Commit` of the host `source`, owner of `epoch`, proves.
    pub fn committed(source: Uuid, epoch: Epoch) -> Self {
        Self { source, epoch }
    }
}

/// Why an epoch may not be taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Another host runs it.
    #[error("epoch {epoch} belongs to the host {} ({}), which runs it", .owner.hostname, .owner.host_id)]
    HeldBy {
        /// The highest epoch.
        epoch: Epoch,
        /// Its record.
        owner: Box<Record>,
    },
    /// The highest record cannot be used, so nobody knows whose the VM is.
    #[error("epoch {epoch} cannot be read: {damage}")]
    Damaged {
        /// The highest epoch.
        epoch: Epoch,
        /// What is wrong with its record.
        damage: Damage,
    },
    /// It is as it should become already: off, or suspended.
    #[error("nobody runs it")]
    NotRunning,
    /// The owner is not the one that the claim is about.
    #[error("its owner has changed meanwhile")]
    Changed,
    /// There are no more epochs.
    #[error("epoch {epoch} is the last that can be written")]
    LastEpoch {
        /// The highest epoch.
        epoch: Epoch,
    },
}

/// Whether `taker` may bring a VM with the register `highest` into the state `wanted`, and with which epoch.
pub fn permit(highest: &Highest, taker: Uuid, wanted: State, claim: &Claim) -> Result<Epoch, Refusal> {
    let Some((epoch, reading)) = highest else {
        return match (claim, wanted) {
            (Claim::Own, State::Running) => Ok(Epoch::FIRST),
            (Claim::Own, State::Suspended | State::Off) => Err(Refusal::NotRunning),
            (Claim::OwnAt { .. } | Claim::Move(_) | Claim::Force { .. }, _) => Err(Refusal::Changed),
        };
    };
    let (epoch, next) = (*epoch, epoch.next().ok_or(Refusal::LastEpoch { epoch: *epoch }));
    let owner = match (reading, claim) {
        // What a newer version wrote is sound, and an older one must not overrule it.
        (Err(damage), Claim::Force { epoch: stated })
            if *stated == epoch && !matches!(damage, Damage::Newer { .. }) =>
        {
            return next;
        }
        (Err(damage), _) => return Err(Refusal::Damaged { epoch, damage: damage.clone() }),
        (Ok(owner), _) => owner,
    };
    match claim {
        Claim::Force { epoch: stated } if *stated == epoch => next,
        Claim::Move(handover)
            if handover.epoch == epoch
                && handover.source == owner.host_id
                && owner.state == State::Running
                && wanted == State::Running =>
        {
            next
        }
        Claim::Force { .. } | Claim::Move(_) => Err(Refusal::Changed),
        Claim::OwnAt { epoch: seen } if *seen != epoch => Err(Refusal::Changed),
        Claim::Own | Claim::OwnAt { .. } => match (owner.state, wanted) {
            (State::Running, _) if owner.host_id == taker => next,
            (State::Running, _) => Err(Refusal::HeldBy { epoch, owner: Box::new(owner.clone()) }),
            (State::Off | State::Suspended, State::Running) | (State::Suspended, State::Off) => next,
            (State::Off, State::Off | State::Suspended) | (State::Suspended, State::Suspended) => {
                Err(Refusal::NotRunning)
            }
        },
    }
}

/// An error of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Trouble {
    errno: i32,
}

impl Trouble {
    /// The trouble that an operation's error is.
    pub fn of(error: &io::Error) -> Self {
        Self { errno: error.raw_os_error().unwrap_or(Errno::EIO as i32) }
    }

    /// The error.
    pub fn error(self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }

    /// Whether the store has considered the link and refused it. Any other error may hide a link that was made, or will be.
    fn is_verdict(self) -> bool {
        matches!(
            Errno::from_raw(self.errno),
            Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS | Errno::EACCES | Errno::EPERM | Errno::EMLINK
        )
    }
}

/// An epoch that was won. A monitor may only run under one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Proof {
    epoch: Epoch,
    record: Record,
}

impl Proof {
    /// Which.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What was written.
    pub fn record(&self) -> &Record {
        &self.record
    }
}

/// How a take ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The epoch is the taker's.
    Won(Proof),
    /// The epoch is another's, or a higher one has been taken already.
    Lost {
        /// The epoch that decided it.
        epoch: Epoch,
        /// Its record.
        to: Reading,
    },
    /// It may not be taken; nothing was done.
    Refused(Refusal),
    /// The store failed before the epoch could be taken, and it was not.
    NotTaken(Trouble),
    /// The epoch is the taker's, but a power cut may undo it: nothing may run under it.
    NotDurable {
        /// Which.
        epoch: Epoch,
        /// Why.
        trouble: Trouble,
    },
}

/// What a take needs done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// List the owner files and read the highest.
    Look,
    /// Write the record into the temporary file and flush that, replacing one that is there.
    Write,
    /// Link the temporary file to this epoch's name.
    Link(Epoch),
    /// Read this epoch's record.
    Read(Epoch),
    /// Remove the temporary file. It is a change of the directory by this host, so that a list read after it is no older.
    Tidy,
    /// As [`Step::Look`], once more.
    LookAgain,
    /// Flush the directory.
    Flush,
}

/// What the store answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answer {
    /// To [`Step::Look`] and [`Step::LookAgain`].
    Highest(Highest),
    /// To [`Step::Read`]; `None`: there is no such file.
    Read(Option<Reading>),
    /// To all others: it is done.
    Done,
    /// To [`Step::Link`]: the name is taken, perhaps by this very link.
    Exists,
    /// To any: it failed.
    Failed(Trouble),
}

/// What follows from an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Progress {
    /// The next step can be done at once.
    On(Take),
    /// The outcome is open and the store gave no help; the next step is worth a pause.
    Open(Take),
    /// It ended.
    Ended(Outcome),
}

/// One attempt to take the next epoch of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Take {
    taker: Uuid,
    claim: Claim,
    record: Record,
    stage: Stage,
    /// Set once a link was issued whose fate is not known: then only the epoch's own record ends the take.
    in_doubt: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage {
    Look,
    Write(Epoch),
    Link(Epoch),
    /// With what the store had refused the link for, if it had.
    Read(Epoch, Option<Trouble>),
    Tidy(Epoch),
    LookAgain(Epoch),
    Flush(Epoch),
}

impl Take {
    /// An attempt of the host `taker` to write `record`, whose attempt id must be new.
    pub fn new(taker: Uuid, record: Record, claim: Claim) -> Self {
        Self { taker, claim, record: record.fitted(), stage: Stage::Look, in_doubt: false }
    }

    /// The host that takes.
    pub fn taker(&self) -> Uuid {
        self.taker
    }

    /// What it writes.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What to do now.
    pub fn step(&self) -> Step {
        match self.stage {
            Stage::Look => Step::Look,
            Stage::Write(_) => Step::Write,
            Stage::Link(epoch) => Step::Link(epoch),
            Stage::Read(epoch, _) => Step::Read(epoch),
            Stage::Tidy(_) => Step::Tidy,
            Stage::LookAgain(_) => Step::LookAgain,
            Stage::Flush(_) => Step::Flush,
        }
    }

    fn at(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }

    fn in_doubt(self) -> Self {
        Self { in_doubt: true, ..self }
    }

    /// What follows from the answer to the present step.
    pub fn answered(self, answer: Answer) -> Progress {
        use Progress::{Ended, On, Open};
        match (self.stage.clone(), answer) {
            (Stage::Look, Answer::Highest(highest)) => {
                match permit(&highest, self.taker, self.record.state, &self.claim) {
                    Ok(epoch) => On(self.at(Stage::Write(epoch))),
                    Err(refusal) => Ended(Outcome::Refused(refusal)),
                }
            }
            (Stage::Look, Answer::Failed(trouble)) => Ended(Outcome::NotTaken(trouble)),
            (Stage::Write(epoch), Answer::Done) => On(self.at(Stage::Link(epoch))),
            (Stage::Write(_), Answer::Failed(trouble)) if !self.in_doubt => Ended(Outcome::NotTaken(trouble)),
            // An earlier link may have landed meanwhile: who cannot write can still read.
            (Stage::Write(epoch), Answer::Failed(_)) => Open(self.at(Stage::Read(epoch, None))),
            // Success is no more than a hint; the record decides.
            (Stage::Link(epoch), Answer::Done | Answer::Exists) => {
                On(self.in_doubt().at(Stage::Read(epoch, None)))
            }
            (Stage::Link(epoch), Answer::Failed(trouble)) if trouble.is_verdict() => {
                On(self.at(Stage::Read(epoch, Some(trouble))))
            }
            (Stage::Link(epoch), Answer::Failed(_)) => On(self.in_doubt().at(Stage::Read(epoch, None))),
            (Stage::Read(epoch, _), Answer::Read(Some(reading))) => {
                if reading.as_ref() == Ok(&self.record) {
                    On(self.at(Stage::Tidy(epoch)))
                } else {
                    Ended(Outcome::Lost { epoch, to: reading })
                }
            }
            (Stage::Read(_, Some(refused)), Answer::Read(None)) if !self.in_doubt => {
                Ended(Outcome::NotTaken(refused))
            }
            // It is not there yet, or this reading is old. The same record again does no harm: one name, one file.
            (Stage::Read(epoch, _), Answer::Read(None)) => Open(self.at(Stage::Write(epoch))),
            (Stage::Tidy(epoch), Answer::Done) => On(self.at(Stage::LookAgain(epoch))),
            (Stage::LookAgain(epoch), Answer::Highest(Some((highest, _)))) if highest == epoch => {
                On(self.at(Stage::Flush(epoch)))
            }
            (Stage::LookAgain(epoch), Answer::Highest(Some((highest, to)))) if highest > epoch => {
                Ended(Outcome::Lost { epoch: highest, to })
            }
            (Stage::Flush(epoch), Answer::Done) => Ended(Outcome::Won(Proof { epoch, record: self.record })),
            (Stage::Flush(epoch), Answer::Failed(trouble)) => Ended(Outcome::NotDurable { epoch, trouble }),
            // A failure, a list that is older than the link, an answer to something else: nothing is known that was not before.
            (
                Stage::Look
                | Stage::Write(_)
                | Stage::Link(_)
                | Stage::Read(..)
                | Stage::Tidy(_)
                | Stage::LookAgain(_)
                | Stage::Flush(_),
                _,
            ) => Open(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    fn epoch(n: u64) -> Epoch {
        Epoch::new(n).unwrap()
    }

    fn held(n: u64, host: u128, state: State) -> Highest {
        Some((epoch(n), Ok(record(host, state, 7))))
    }

    #[test]
    fn who_may_take_what() {
        let (run, off) = (State::Running, State::Off);
        let may =
            |highest: &Highest, wanted, claim: &Claim| permit(highest, A, wanted, claim).map(Epoch::number);
        let own = Claim::Own;
        assert_eq!(may(&None, run, &own), Ok(1));
        assert_eq!(may(&None, off, &own), Err(Refusal::NotRunning));
        for host in [1, 2] {
            assert_eq!(may(&held(4, host, off), run, &own), Ok(5));
            assert_eq!(may(&held(4, host, State::Suspended), run, &own), Ok(5));
            assert_eq!(may(&held(4, host, State::Suspended), off, &own), Ok(5));
            assert_eq!(may(&held(4, host, off), off, &own), Err(Refusal::NotRunning));
        }
        for wanted in [run, off, State::Suspended] {
            assert_eq!(may(&held(4, 1, run), wanted, &own), Ok(5));
            assert!(matches!(may(&held(4, 2, run), wanted, &own), Err(Refusal::HeldBy { .. })));
        }
        let moved = |source, n| Claim::Move(Handover::committed(source, epoch(n)));
        assert_eq!(may(&held(4, 2, run), run, &moved(B, 4)), Ok(5));
        for (highest, claim) in [
            (held(4, 2, run), moved(B, 3)),
            (held(4, 2, run), moved(A, 4)),
            (held(4, 2, off), moved(B, 4)),
            (None, moved(B, 4)),
            (held(4, 2, run), Claim::Force { epoch: epoch(3) }),
            (held(4, 1, run), Claim::OwnAt { epoch: epoch(3) }),
            (None, Claim::OwnAt { epoch: epoch(1) }),
        ] {
            assert_eq!(may(&highest, run, &claim), Err(Refusal::Changed), "{highest:?} {claim:?}");
        }
        assert_eq!(may(&held(4, 1, run), off, &Claim::OwnAt { epoch: epoch(4) }), Ok(5));
        let force = Claim::Force { epoch: epoch(4) };
        assert_eq!(may(&held(4, 2, run), run, &force), Ok(5));
        let damaged = |damage| Some((epoch(4), Err(damage)));
        for wanted in [run, off] {
            assert!(matches!(may(&damaged(Damage::Checksum), wanted, &own), Err(Refusal::Damaged { .. })));
        }
        assert_eq!(may(&damaged(Damage::Checksum), run, &force), Ok(5));
        let newer = damaged(Damage::Newer { found: 9 });
        assert!(matches!(may(&newer, run, &force), Err(Refusal::Damaged { .. })));
        let last = Some((epoch(u64::MAX), Ok(record(2, off, 7))));
        assert!(matches!(may(&last, run, &own), Err(Refusal::LastEpoch { .. })));
    }

    fn on(progress: Progress) -> Take {
        match progress {
            Progress::On(take) | Progress::Open(take) => take,
            Progress::Ended(outcome) => panic!("{outcome:?}"),
        }
    }

    fn at_link() -> Take {
        let take = Take::new(A, record(1, State::Running, 3), Claim::Own);
        on(on(take.answered(Answer::Highest(None))).answered(Answer::Done))
    }

    #[test]
    fn a_success_that_was_told_as_a_failure_is_found_by_reading_back() {
        for answer in [Answer::Exists, Answer::Failed(Trouble { errno: Errno::EIO as i32 }), Answer::Done] {
            let take = on(at_link().answered(answer));
            let mine = take.record().clone();
            let take = on(take.answered(Answer::Read(Some(Ok(mine.clone())))));
            let take = on(take.answered(Answer::Done));
            let take = on(take.answered(Answer::Highest(Some((Epoch::FIRST, Ok(mine))))));
            let ended = take.answered(Answer::Done);
            assert!(
                matches!(ended, Progress::Ended(Outcome::Won(ref proof)) if proof.epoch() == Epoch::FIRST)
            );
        }
    }

    #[test]
    fn an_earlier_attempt_of_the_same_host_is_another_owner() {
        let take = on(at_link().answered(Answer::Exists));
        let ended = take.answered(Answer::Read(Some(Ok(record(1, State::Running, 2)))));
        assert!(matches!(ended, Progress::Ended(Outcome::Lost { .. })));
    }

    #[test]
    fn a_full_store_is_a_verdict_and_a_silent_one_is_not() {
        let full = Trouble { errno: Errno::ENOSPC as i32 };
        let take = on(at_link().answered(Answer::Failed(full)));
        assert_eq!(take.answered(Answer::Read(None)), Progress::Ended(Outcome::NotTaken(full)));
        let take = on(at_link().answered(Answer::Failed(Trouble { errno: Errno::ESTALE as i32 })));
        let take = on(take.answered(Answer::Read(None)));
        // The first link may still land, so the verdict on the second ends nothing.
        assert_eq!(take.step(), Step::Write);
        let take = on(on(take.answered(Answer::Done)).answered(Answer::Failed(full)));
        assert!(matches!(take.answered(Answer::Read(None)), Progress::Open(_)));
    }

    #[test]
    fn a_forced_take_over_since_then_is_seen() {
        let take = on(at_link().answered(Answer::Done));
        let mine = take.record().clone();
        let take = on(on(take.answered(Answer::Read(Some(Ok(mine))))).answered(Answer::Done));
        let ended = take.answered(Answer::Highest(held(2, 2, State::Running)));
        assert!(
            matches!(ended, Progress::Ended(Outcome::Lost { epoch, .. }) if epoch == Epoch::new(2).unwrap())
        );
    }

    #[test]
    fn what_cannot_be_flushed_is_not_won() {
        let take = on(at_link().answered(Answer::Done));
        let mine = take.record().clone();
        let take = on(on(take.answered(Answer::Read(Some(Ok(mine.clone()))))).answered(Answer::Done));
        let take = on(take.answered(Answer::Highest(Some((Epoch::FIRST, Ok(mine))))));
        let ended = take.answered(Answer::Failed(Trouble { errno: Errno::EIO as i32 }));
        assert!(matches!(ended, Progress::Ended(Outcome::NotDurable { .. })));
    }
}
