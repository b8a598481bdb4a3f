//! What a unit does when: a state machine without I/O. Times are on init's monotonic clock (`now`); wall-clock times are only
//! recorded.

use std::collections::VecDeque;
use std::time::Duration;

use keelson_init_control::{Exit, ExitRecord, UnitId, UnitState, UnitStatus};

use crate::backoff::Backoff;

/// How many ends are remembered.
const EXITS_KEPT: usize = 8;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// Init's monotonic clock.
    pub(crate) now: Duration,
    /// Milliseconds since the Unix epoch.
    pub(crate) wall_ms: u64,
}

/// What follows an end that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Stays ended.
    Stay,
    /// Is started again at once.
    Again,
}

/// What has to be done to a unit now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Start its process, and report with [`Unit::started`] or [`Unit::not_started`].
    Start,
    /// SIGTERM to its main process.
    Terminate(i32),
    /// SIGKILL to all its processes.
    Kill(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting { until: Duration },
    Running,
    Stopping { kill_at: Option<Duration>, then: Then },
    Ended,
}

/// A unit.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    id: UnitId,
    phase: Phase,
    pid: Option<i32>,
    since: Duration,
    started_ms: u64,
    restarts: u32,
    exits: VecDeque<ExitRecord>,
    backoff: Backoff,
}

impl Unit {
    /// A unit to be started at once: [`Unit::due`] says so.
    pub(crate) fn new(id: UnitId) -> Self {
        Self {
            id,
            phase: Phase::Waiting { until: Duration::ZERO },
            pid: None,
            since: Duration::ZERO,
            started_ms: 0,
            restarts: 0,
            exits: VecDeque::new(),
            backoff: Backoff::default(),
        }
    }

    /// Its main process.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Whether it has ended and stays so.
    pub(crate) fn ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    fn is_vm(&self) -> bool {
        matches!(self.id, UnitId::Vm(_))
    }

    /// Its process runs.
    pub(crate) fn started(&mut self, pid: i32, at: Moment) {
        if !self.exits.is_empty() {
            self.restarts = self.restarts.saturating_add(1);
        }
        (self.pid, self.since, self.started_ms) = (Some(pid), at.now, at.wall_ms);
        self.phase = Phase::Running;
    }

    /// Its process could not be started.
    pub(crate) fn not_started(&mut self, errno: i32, at: Moment) {
        (self.pid, self.since, self.started_ms) = (None, at.now, at.wall_ms);
        self.over(Exit::NotStarted(errno), at, Then::Stay, false);
    }

    /// Its main process ended.
    pub(crate) fn exited(&mut self, exit: Exit, at: Moment) {
        match self.phase {
            Phase::Running => self.over(exit, at, Then::Stay, false),
            Phase::Stopping { then, .. } => self.over(exit, at, then, true),
            Phase::Waiting { .. } | Phase::Ended => {}
        }
    }

    fn over(&mut self, exit: Exit, at: Moment, then: Then, asked: bool) {
        let ran = at.now.saturating_sub(self.since);
        let ran_ms = u64::try_from(ran.as_millis()).unwrap_or(u64::MAX);
        self.exits.push_back(ExitRecord { exit, time_ms: at.wall_ms, ran_ms });
        while self.exits.len() > EXITS_KEPT {
            self.exits.pop_front();
        }
        self.pid = None;
        self.phase = match (asked, then) {
            (true, Then::Stay) => Phase::Ended,
            (true, Then::Again) => Phase::Waiting { until: at.now },
            (false, _) if self.is_vm() => Phase::Ended,
            (false, _) => Phase::Waiting { until: at.now.saturating_add(self.backoff.after(ran)) },
        };
    }

    /// Asks it to end within `deadline`, or sooner where it was asked before.
    pub(crate) fn stop(&mut self, deadline: Duration, then: Then, now: Duration) -> Option<Act> {
        let until = now.saturating_add(deadline);
        match (self.phase, self.pid) {
            (Phase::Running, Some(pid)) => {
                self.phase = Phase::Stopping { kill_at: Some(until), then };
                Some(Act::Terminate(pid))
            }
            (Phase::Stopping { kill_at, .. }, _) => {
                // Killed already when there is no time left to wait for.
                self.phase = Phase::Stopping { kill_at: kill_at.map(|at| at.min(until)), then };
                None
            }
            (Phase::Waiting { .. } | Phase::Ended | Phase::Running, _) => {
                self.phase = match then {
                    Then::Stay => Phase::Ended,
                    Then::Again => Phase::Waiting { until: now },
                };
                None
            }
        }
    }

    /// Kills it, without changing what follows its end.
    pub(crate) fn kill(&self) -> Option<Act> {
        self.pid.map(Act::Kill)
    }

    /// What is due at `now`; asked again until `None`.
    pub(crate) fn due(&mut self, now: Duration) -> Option<Act> {
        match (self.phase, self.pid) {
            (Phase::Waiting { until }, _) if until <= now => Some(Act::Start),
            (Phase::Stopping { kill_at: Some(at), then }, Some(pid)) if at <= now => {
                self.phase = Phase::Stopping { kill_at: None, then };
                Some(Act::Kill(pid))
            }
            _ => None,
        }
    }

    /// When [`Unit::due`] is to be asked next.
    pub(crate) fn next(&self) -> Option<Duration> {
        match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Stopping { kill_at, .. } => kill_at,
            Phase::Running | Phase::Ended => None,
        }
    }

    /// What is told about it.
    pub(crate) fn status(&self, now: Duration) -> UnitStatus {
        let state = match self.phase {
            Phase::Running => UnitState::Running,
            Phase::Stopping { .. } => UnitState::Stopping,
            Phase::Ended => UnitState::Ended,
            Phase::Waiting { until } => {
                let left = until.saturating_sub(now).as_millis();
                UnitState::Backoff { restart_in_ms: u64::try_from(left).unwrap_or(u64::MAX) }
            }
        };
        UnitStatus {
            id: self.id,
            state,
            pid: self.pid,
            started_ms: self.started_ms,
            restarts: self.restarts,
            exits: self.exits.iter().copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Moment {
        Moment { now: Duration::from_millis(ms), wall_ms: ms }
    }

    fn vm() -> UnitId {
        UnitId::Vm(uuid::Uuid::nil())
    }

    #[test]
    fn a_daemon_that_ends_is_started_again_later_each_time() {
        let mut unit = Unit::new(UnitId::Hostd);
        assert_eq!(unit.due(at(0).now), Some(Act::Start));
        unit.started(7, at(0));
        unit.exited(Exit::Signal(9), at(50));
        assert_eq!(unit.due(at(149).now), None);
        assert_eq!(unit.due(at(150).now), Some(Act::Start));
        unit.started(8, at(150));
        unit.exited(Exit::Code(1), at(160));
        assert_eq!(unit.next(), Some(at(360).now));
        let status = unit.status(at(160).now);
        assert_eq!((status.restarts, status.state), (1, UnitState::Backoff { restart_in_ms: 200 }));
        assert_eq!(status.exits[0].exit, Exit::Signal(9));
    }

    #[test]
    fn a_vm_that_ends_stays_so() {
        let mut unit = Unit::new(vm());
        unit.started(7, at(0));
        unit.exited(Exit::Code(0), at(50));
        assert!(unit.ended());
        assert_eq!(unit.due(at(1_000_000).now), None);
    }

    #[test]
    fn a_stop_terminates_then_kills_once_and_stays() {
        let mut unit = Unit::new(UnitId::Netd);
        unit.started(7, at(0));
        assert_eq!(unit.stop(Duration::from_secs(1), Then::Stay, at(100).now), Some(Act::Terminate(7)));
        assert_eq!(unit.due(at(1099).now), None);
        assert_eq!(unit.due(at(1100).now), Some(Act::Kill(7)));
        assert_eq!(unit.due(at(1100).now), None);
        unit.exited(Exit::Signal(9), at(1101));
        assert!(unit.ended());
    }

    #[test]
    fn a_second_stop_may_shorten_the_deadline_but_not_lengthen_it() {
        let mut unit = Unit::new(vm());
        unit.started(7, at(0));
        unit.stop(Duration::from_secs(60), Then::Stay, at(0).now);
        assert_eq!(unit.stop(Duration::from_secs(1), Then::Stay, at(0).now), None);
        assert_eq!(unit.next(), Some(at(1000).now));
        unit.stop(Duration::from_secs(60), Then::Stay, at(0).now);
        assert_eq!(unit.next(), Some(at(1000).now));
    }

    #[test]
    fn a_restart_comes_at_once_and_wakes_a_stopped_daemon() {
        let mut unit = Unit::new(UnitId::Hostd);
        unit.started(7, at(0));
        unit.stop(Duration::from_secs(5), Then::Again, at(10).now);
        unit.exited(Exit::Code(0), at(20));
        assert_eq!(unit.due(at(20).now), Some(Act::Start));
        unit.started(8, at(20));
        unit.stop(Duration::from_secs(5), Then::Stay, at(30).now);
        unit.exited(Exit::Code(0), at(40));
        assert!(unit.ended());
        unit.stop(Duration::from_secs(5), Then::Again, at(50).now);
        assert_eq!(unit.due(at(50).now), Some(Act::Start));
    }

    #[test]
    fn what_cannot_be_started_is_tried_again_and_said() {
        let mut unit = Unit::new(UnitId::Hostd);
        unit.not_started(2, at(0));
        assert_eq!(unit.status(at(0).now).exits[0].exit, Exit::NotStarted(2));
        assert_eq!(unit.due(at(100).now), Some(Act::Start));
    }

    proptest! {
        /// Whatever happens in whatever order: a process is known exactly while the unit runs or stops, a kill is asked at most
        /// once a stop, and a stopped unit never starts by itself.
        #[test]
        fn the_machine_keeps_its_word(is_vm: bool, steps in prop::collection::vec((0u8..6, 0u64..20_000), 1..100)) {
            let mut unit = Unit::new(if is_vm { vm() } else { UnitId::Netd });
            let (mut clock, mut pid) = (0u64, 1i32);
            for (step, by) in steps {
                clock += by;
                let stopped = unit.ended();
                match step {
                    0 => if unit.due(at(clock).now) == Some(Act::Start) {
                        prop_assert!(!stopped);
                        pid += 1;
                        unit.started(pid, at(clock));
                    },
                    1 => if unit.pid().is_some() { unit.exited(Exit::Signal(9), at(clock)); },
                    2 => { unit.stop(Duration::from_millis(by), Then::Stay, at(clock).now); },
                    3 => { unit.stop(Duration::from_millis(by), Then::Again, at(clock).now); },
                    4 => if unit.due(at(clock).now) == Some(Act::Start) { unit.not_started(13, at(clock)); },
                    _ => { unit.due(at(clock).now); }
                }
                let status = unit.status(at(clock).now);
                let alive = matches!(status.state, UnitState::Running | UnitState::Stopping);
                prop_assert_eq!(alive, status.pid.is_some());
                prop_assert!(status.exits.len() <= EXITS_KEPT);
            }
        }
    }
}
