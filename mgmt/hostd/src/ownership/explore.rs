//! Every interleaving of two or three hosts on a store that may lie within what stores are known to do, walked through with the
//! decisions that ship: at most one host wins an epoch, at most one runs the VM at any moment, and no take is ever stuck.
//!
//! The store is abstract: a row of records, links that are still under way, and a budget of faults (stale lists, lost replies, late
//! links, false refusals, errors). Hosts crash at any point; they move the VM; one of them is taken for dead, rightly or while it is
//! frozen in a take. The last test breaks one rule at a time and demands that the explorer notices.

use std::collections::{BTreeSet, HashSet};

use nix::errno::Errno;
use uuid::Uuid;

use super::record::tests::record;
use super::*;

/// What is walked through.
#[derive(Debug, Clone, Copy)]
struct Plan {
    hosts: usize,
    /// Takes that each host may begin.
    takes: u8,
    /// Crashes in all.
    crashes: u8,
    /// Answers of the store that are not the plain truth, in all.
    faults: u8,
    moves: bool,
    /// Forced take-overs of a host that is dead, or frozen in a take.
    force: bool,
    broken: Option<Broken>,
}

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// The link's reply is believed; nothing is read back.
    ReplyBelieved,
    /// Read back, but only the host is compared.
    HostOnly,
    /// Nobody looks for a higher epoch.
    NoSecondLook,
    /// `running` of another host is taken like `off`.
    AnyoneTakes,
    /// A source that has sent `Commit` runs on when it hears nothing.
    SilenceIsNo,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Host {
    /// The attempt under which it runs the VM.
    runs: Option<Uuid>,
    take: Option<Take>,
    /// Takes begun.
    begun: u8,
    /// The highest epoch when it changed the directory last: its lists are no older.
    fresh: usize,
    /// Sent to it by a source that has stopped.
    handover: Option<Handover>,
    fenced: bool,
    dead: bool,
    frozen: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    /// The records of the epochs from 1.
    store: Vec<Record>,
    /// Links that will be made, or not, at some time.
    flying: Vec<(Epoch, Record)>,
    hosts: Vec<Host>,
    won: BTreeSet<(Epoch, Uuid)>,
    crashes: u8,
    faults: u8,
}

fn id(host: usize) -> Uuid {
    Uuid::from_u128(host as u128 + 1)
}

/// What a list that shows the first `upto` epochs says.
fn highest(store: &[Record], upto: usize) -> Highest {
    let record = store.get(..upto)?.last()?;
    Some((Epoch::new(upto as u64)?, Ok(record.clone())))
}

fn at(store: &[Record], epoch: Epoch) -> Option<&Record> {
    store.get(epoch.number() as usize - 1)
}

/// The store makes a link; whether the name was free.
fn link(store: &mut Vec<Record>, epoch: Epoch, record: &Record) -> bool {
    assert!(epoch.number() as usize <= store.len() + 1, "an epoch was left out");
    let free = at(store, epoch).is_none();
    if free {
        store.push(record.clone());
    }
    free
}

fn failed(errno: Errno) -> Answer {
    Answer::Failed(Trouble::of(&errno.into()))
}

impl World {
    fn new(plan: Plan) -> Self {
        let host = Host {
            runs: None,
            take: None,
            begun: 0,
            fresh: 0,
            handover: None,
            fenced: false,
            dead: false,
            frozen: false,
        };
        Self {
            store: vec![],
            flying: vec![],
            hosts: vec![host; plan.hosts],
            won: BTreeSet::new(),
            crashes: plan.crashes,
            faults: plan.faults,
        }
    }

    fn begin(&self, h: usize, plan: Plan, state: State, claim: Claim) -> Option<Self> {
        let mut next = self.clone();
        let host = &mut next.hosts[h];
        if host.begun >= plan.takes {
            return None;
        }
        host.begun += 1;
        let attempt = (h as u128 + 1) << 8 | u128::from(host.begun);
        // Names decide nothing, and empty ones are cheap to copy a million times.
        let record = Record {
            hostname: String::new(),
            boot_id: String::new(),
            ..record(id(h).as_u128(), state, attempt)
        };
        host.take = Some(Take::new(id(h), record, claim));
        Some(next)
    }

    /// Everything that can happen next.
    fn nexts(&self, plan: Plan) -> Vec<Self> {
        let mut nexts = Vec::new();
        for i in 0..self.flying.len() {
            let mut next = self.clone();
            let (epoch, record) = next.flying.remove(i);
            link(&mut next.store, epoch, &record);
            nexts.push(next);
        }
        for h in 0..self.hosts.len() {
            self.of_host(h, plan, &mut nexts);
        }
        nexts
    }

    fn of_host(&self, h: usize, plan: Plan, nexts: &mut Vec<Self>) {
        let host = &self.hosts[h];
        if host.dead {
            return;
        }
        if host.frozen {
            // It goes on once the take-over of the operator, who took it for dead, has ended: his claim holds as long as a link of
            // his is under way.
            let takes = self.hosts.iter().enumerate().any(|(o, other)| o != h && other.take.is_some());
            if !takes && self.flying.iter().all(|(_, record)| record.host_id == id(h)) {
                let mut next = self.clone();
                next.hosts[h].frozen = false;
                nexts.push(next);
            }
            return;
        }
        if self.crashes > 0 {
            let mut next = self.clone();
            next.crashes -= 1;
            let host = &mut next.hosts[h];
            (host.runs, host.take, host.fenced, host.handover) = (None, None, false, None);
            if plan.force {
                let mut next = next.clone();
                next.hosts[h].dead = true;
                nexts.push(next);
            }
            nexts.push(next);
        }
        if let Some(take) = &host.take {
            self.steps(h, take, plan, nexts);
            // In the middle of a take and not yet past its last look.
            if plan.force && self.crashes > 0 && !matches!(take.step(), Step::LookAgain | Step::Flush) {
                let mut next = self.clone();
                next.crashes -= 1;
                next.hosts[h].frozen = true;
                nexts.push(next);
            }
            return;
        }
        if host.runs.is_some() {
            let mut stopped = self.clone();
            stopped.hosts[h].runs = None;
            nexts.extend(stopped.begin(h, plan, State::Off, Claim::Own));
            if plan.moves {
                for target in (0..self.hosts.len()).filter(|t| *t != h) {
                    let mut sent = stopped.clone();
                    sent.hosts[h].fenced = true;
                    let epoch = Epoch::new(self.store.len() as u64);
                    sent.hosts[target].handover = epoch.map(|e| Handover::committed(id(h), e));
                    nexts.push(sent);
                }
            }
            return;
        }
        if host.fenced && plan.broken == Some(Broken::SilenceIsNo) {
            let mut next = self.clone();
            next.hosts[h].runs = Some(id(h));
            nexts.push(next);
        }
        nexts.extend(self.begin(h, plan, State::Running, Claim::Own));
        // A host that finds its own record after a crash.
        nexts.extend(self.begin(h, plan, State::Off, Claim::Own));
        if let Some(handover) = &host.handover {
            nexts.extend(self.begin(h, plan, State::Running, Claim::Move(handover.clone())));
        }
        if plan.force
            && let Some(owner) = self.store.last().filter(|r| r.state == State::Running)
            && let Some(o) = (0..self.hosts.len()).find(|o| id(*o) == owner.host_id)
            && (self.hosts[o].dead || self.hosts[o].frozen)
            && let Some(epoch) = Epoch::new(self.store.len() as u64)
        {
            nexts.extend(self.begin(h, plan, State::Running, Claim::Force { epoch }));
        }
    }

    /// The store answers a host's step with the truth, or, within its budget, with something else.
    fn steps(&self, h: usize, take: &Take, plan: Plan, nexts: &mut Vec<Self>) {
        let max = self.store.len();
        let mut say = |mut world: Self, fault: bool, answer: Answer| {
            if fault && world.faults == 0 {
                return;
            }
            world.faults -= u8::from(fault);
            world.answer(h, take.clone(), plan.broken, answer);
            nexts.push(world);
        };
        let lie = |say: &mut dyn FnMut(Self, bool, Answer), answer| say(self.clone(), true, answer);
        match take.step() {
            Step::Look | Step::LookAgain => {
                say(self.clone(), false, Answer::Highest(highest(&self.store, max)));
                let oldest = if take.step() == Step::Look { 0 } else { self.hosts[h].fresh };
                for old in oldest..max {
                    lie(&mut say, Answer::Highest(highest(&self.store, old)));
                }
                lie(&mut say, failed(Errno::EIO));
            }
            Step::Write | Step::Flush => {
                say(self.clone(), false, Answer::Done);
                lie(&mut say, failed(Errno::EIO));
            }
            Step::Tidy => {
                let mut world = self.clone();
                world.hosts[h].fresh = max;
                say(world, false, Answer::Done);
                lie(&mut say, failed(Errno::EIO));
            }
            Step::Link(epoch) => {
                let mut made = self.clone();
                let free = link(&mut made.store, epoch, take.record());
                say(made.clone(), false, if free { Answer::Done } else { Answer::Exists });
                say(made.clone(), true, failed(Errno::EIO));
                say(made.clone(), true, failed(Errno::EROFS));
                say(made, true, Answer::Exists);
                let mut late = self.clone();
                late.flying.push((epoch, take.record().clone()));
                late.flying.sort_by_key(|(epoch, record)| (*epoch, record.attempt));
                late.flying.dedup();
                say(late.clone(), true, failed(Errno::ESTALE));
                say(late, true, failed(Errno::ENOSPC));
            }
            Step::Read(epoch) => {
                say(self.clone(), false, Answer::Read(at(&self.store, epoch).cloned().map(Ok)));
                if at(&self.store, epoch).is_some() {
                    lie(&mut say, Answer::Read(None));
                }
                lie(&mut say, failed(Errno::EIO));
            }
        }
    }

    fn answer(&mut self, h: usize, take: Take, broken: Option<Broken>, mut answer: Answer) {
        let mine = take.record().clone();
        match (broken, take.step(), &mut answer) {
            (Some(Broken::ReplyBelieved), Step::Read(_), Answer::Read(Some(reading))) => *reading = Ok(mine),
            (Some(Broken::HostOnly), Step::Read(_), Answer::Read(Some(Ok(found))))
                if found.host_id == mine.host_id =>
            {
                *found = mine;
            }
            (Some(Broken::NoSecondLook), Step::LookAgain, Answer::Highest(Some((highest, reading)))) => {
                // What the take itself would have had to see.
                if let Some(at) = self.store.iter().position(|r| *r == mine)
                    && let Some(epoch) = Epoch::new(at as u64 + 1)
                {
                    (*highest, *reading) = (epoch, Ok(mine));
                }
            }
            (Some(Broken::AnyoneTakes), Step::Look, Answer::Highest(Some((_, Ok(found))))) => {
                found.state = if mine.state == State::Off { found.state } else { State::Off };
            }
            _ => {}
        }
        let host = &mut self.hosts[h];
        host.take = match take.answered(answer) {
            Progress::On(take) | Progress::Open(take) => Some(take),
            Progress::Ended(outcome) => {
                (host.fenced, host.handover) = (false, None);
                if let Outcome::Won(proof) = outcome {
                    host.runs = (proof.record().state == State::Running).then_some(proof.record().attempt);
                    self.won.insert((proof.epoch(), proof.record().attempt));
                }
                None
            }
        };
    }

    /// What must hold always.
    fn check(&self) -> Result<(), String> {
        for (epoch, attempt) in &self.won {
            if at(&self.store, *epoch).is_none_or(|r| r.attempt != *attempt) {
                return Err(format!("epoch {epoch} was won by an attempt that is not its record"));
            }
        }
        let runs: Vec<usize> = (0..self.hosts.len()).filter(|h| self.hosts[*h].runs.is_some()).collect();
        match runs.as_slice() {
            [] => Ok(()),
            [h] => {
                let attempt = self.hosts[*h].runs;
                let owner = self.store.last();
                if owner.is_some_and(|r| Some(r.attempt) == attempt && r.state == State::Running) {
                    Ok(())
                } else {
                    Err(format!("host {h} runs it, and the register says otherwise"))
                }
            }
            more => Err(format!("hosts {more:?} run it at once")),
        }
    }

    /// With a store that tells the truth again every take ends in a few steps.
    fn settles(&self) -> Result<(), String> {
        for (h, host) in self.hosts.iter().enumerate() {
            let Some(mut take) = host.take.clone() else { continue };
            let mut store = self.store.clone();
            let mut steps = 0;
            loop {
                let answer = match take.step() {
                    Step::Look | Step::LookAgain => Answer::Highest(highest(&store, store.len())),
                    Step::Write | Step::Tidy | Step::Flush => Answer::Done,
                    Step::Link(epoch) if link(&mut store, epoch, take.record()) => Answer::Done,
                    Step::Link(_) => Answer::Exists,
                    Step::Read(epoch) => Answer::Read(at(&store, epoch).cloned().map(Ok)),
                };
                take = match take.answered(answer) {
                    Progress::On(take) | Progress::Open(take) => take,
                    Progress::Ended(_) => break,
                };
                steps += 1;
                if steps > 12 {
                    return Err(format!("host {h} is stuck before {:?}", take.step()));
                }
            }
        }
        Ok(())
    }
}

/// Walks through everything. The number of states, or the first that breaks a rule.
fn explore(plan: Plan) -> Result<usize, String> {
    let mut seen = HashSet::new();
    let mut to_visit = vec![World::new(plan)];
    while let Some(world) = to_visit.pop() {
        world.check().map_err(|why| format!("{why}: {world:#?}"))?;
        if plan.broken.is_none() {
            world.settles().map_err(|why| format!("{why}: {world:#?}"))?;
        }
        for next in world.nexts(plan) {
            if seen.insert(fingerprint(&next)) {
                to_visit.push(next);
            }
        }
    }
    Ok(seen.len())
}

/// 128 bits of two differently keyed hashes: that two of a few million worlds share them will not happen.
fn fingerprint(world: &World) -> (u64, u64) {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let keyed = |key: u8| {
        let mut hasher = DefaultHasher::new();
        (key, world).hash(&mut hasher);
        hasher.finish()
    };
    (keyed(0), keyed(1))
}

const PLAN: Plan =
    Plan { hosts: 2, takes: 2, crashes: 1, faults: 2, moves: false, force: false, broken: None };

fn holds(plan: Plan, at_least: usize) {
    let states = explore(plan).unwrap_or_else(|why| panic!("{why}"));
    eprintln!("{plan:?}: {states} states");
    assert!(states > at_least, "only {states} states: the plan has lost its point");
}

#[test]
fn two_hosts_power_on_and_off_and_crash_on_a_store_that_lies() {
    holds(PLAN, 10_000);
}

#[test]
fn three_hosts_race() {
    holds(Plan { hosts: 3, takes: 1, crashes: 1, faults: 1, ..PLAN }, 10_000);
}

#[test]
fn a_vm_moves_and_neither_silence_nor_a_crash_makes_two() {
    holds(Plan { moves: true, faults: 1, ..PLAN }, 10_000);
}

#[test]
fn three_hosts_share_a_vm_that_moves_and_is_taken_over() {
    holds(Plan { hosts: 3, takes: 1, crashes: 1, faults: 0, moves: true, force: true, ..PLAN }, 10_000);
}

#[test]
fn a_dead_or_frozen_owner_is_taken_over_and_loses() {
    holds(Plan { force: true, faults: 1, ..PLAN }, 10_000);
}

#[test]
fn the_explorer_notices_every_rule_that_is_broken() {
    for (broken, plan) in [
        (Broken::ReplyBelieved, Plan { crashes: 0, faults: 1, ..PLAN }),
        (Broken::HostOnly, PLAN),
        (Broken::NoSecondLook, Plan { force: true, faults: 0, ..PLAN }),
        (Broken::AnyoneTakes, Plan { crashes: 0, faults: 0, ..PLAN }),
        (Broken::SilenceIsNo, Plan { moves: true, crashes: 0, faults: 0, ..PLAN }),
    ] {
        assert!(explore(Plan { broken: Some(broken), ..plan }).is_err(), "{broken:?} is not noticed");
    }
}
