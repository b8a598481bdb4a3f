//! The host as init holds it: its units and their processes, kept descriptors, watchers, and the record of the boot.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keelson_init_control::{
    Boot, Event, Exit, PowerAction, Problem, Refusal, Step, UnitId, UnitStatus, VmLimits,
};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::cgroup::{Group, Groups};
use crate::clock;
use crate::start;
use crate::store::Store;
use crate::unit::{Act, Then, Unit};
use crate::vm::VmPlace;
use crate::watch::Watchers;

/// How long a daemon may take to end before it is killed on a restart.
const RESTART_DEADLINE: Duration = Duration::from_secs(10);

/// A unit and what it has on this host.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) unit: Unit,
    pub(crate) group: Option<Group>,
    /// Where a VM lives; daemons have none.
    pub(crate) vm: Option<VmPlace>,
}

/// What is behind the lock.
#[derive(Debug, Default)]
pub(crate) struct Core {
    pub(crate) units: BTreeMap<UnitId, Entry>,
    pub(crate) store: Store,
    pub(crate) boot: Boot,
    pub(crate) powering: Option<PowerAction>,
    watchers: Watchers,
}

/// The host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) light: bool,
    pub(crate) groups: Groups,
    /// Whether programs without capabilities may listen on ports below 1024.
    pub(crate) open_ports: bool,
    core: Mutex<Core>,
    changed: Condvar,
    wake: EventFd,
}

impl Host {
    /// A host without units.
    pub(crate) fn new(light: bool, groups: Groups, open_ports: bool, boot: Boot) -> std::io::Result<Self> {
        let wake = EventFd::from_flags(
            nix::sys::eventfd::EfdFlags::EFD_NONBLOCK | nix::sys::eventfd::EfdFlags::EFD_CLOEXEC,
        )?;
        let core = Mutex::new(Core { boot, ..Core::default() });
        Ok(Self { light, groups, open_ports, core, changed: Condvar::new(), wake })
    }

    /// The lock. Nobody panics while holding it (the crate's lints); if it happened, the rest of the host goes on.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the lock is free: the panic hook asks before it re-enters the main loop.
    pub(crate) fn lock_is_free(&self) -> bool {
        !matches!(self.core.try_lock(), Err(std::sync::TryLockError::WouldBlock))
    }

    /// What the main loop waits on beside signals.
    pub(crate) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Lets the main loop look at its units again.
    pub(crate) fn poke(&self) {
        let _ = self.wake.write(1);
        self.changed.notify_all();
    }

    /// A step of the boot is done.
    pub(crate) fn step(&self, name: &str) {
        self.step_at(name, clock::now_ms());
    }

    /// A step of the boot was done at this time, in milliseconds.
    pub(crate) fn step_at(&self, name: &str, at_ms: u64) {
        log::info!("{name} done at {at_ms} ms");
        let step = Step { name: name.into(), at_ms };
        let mut core = self.lock();
        core.watchers.tell(&Event::Step(step.clone()));
        core.boot.timeline.push(step);
    }

    /// Something a person should know.
    pub(crate) fn problem(&self, code: &str, message: impl Into<String>, remedy: &str) {
        let problem = Problem { code: code.into(), message: message.into(), remedy: remedy.into() };
        log::warn!("{} ({}) {}", problem.message, problem.code, problem.remedy);
        self.lock().boot.problems.push(problem);
    }

    /// A new watcher, which is told of every unit and every step of the boot first.
    pub(crate) fn watch(&self) -> Option<Receiver<Event>> {
        let mut core = self.lock();
        let now = clock::now();
        let mut first: Vec<Event> = core.units.values().map(|e| Event::Unit(e.unit.status(now))).collect();
        first.extend(core.boot.timeline.iter().cloned().map(Event::Step));
        first.extend(core.powering.map(Event::PoweringDown));
        core.watchers.add(first)
    }

    /// All units.
    pub(crate) fn statuses(&self) -> Vec<UnitStatus> {
        let now = clock::now();
        self.lock().units.values().map(|e| e.unit.status(now)).collect()
    }

    /// Adds a daemon; the main loop starts it.
    pub(crate) fn add_daemon(&self, id: UnitId) {
        self.lock().units.entry(id).or_insert_with(|| Entry { unit: Unit::new(id), group: None, vm: None });
        self.poke();
    }

    /// Stops a unit, or restarts it. Nothing is started again while the host goes down.
    pub(crate) fn stop(&self, id: UnitId, deadline: Duration, then: Then) -> Result<(), Refusal> {
        let mut core = self.lock();
        if then == Then::Again && core.powering.is_some() {
            return Err(Refusal::GoingDown);
        }
        let entry = core.units.get_mut(&id).ok_or(Refusal::NoSuchUnit(id))?;
        if let Some(act) = entry.unit.stop(deadline, then, clock::now()) {
            carry_out(entry, act);
        }
        core.publish(id);
        drop(core);
        self.poke();
        Ok(())
    }

    /// Restarts a daemon.
    pub(crate) fn restart(&self, id: UnitId) -> Result<(), Refusal> {
        if matches!(id, UnitId::Vm(_)) {
            let why = "a virtual machine's process cannot be restarted; start it anew".into();
            return Err(Refusal::NotForThisUnit { unit: id, why });
        }
        self.stop(id, RESTART_DEADLINE, Then::Again)
    }

    /// Kills a unit.
    pub(crate) fn kill(&self, id: UnitId) -> Result<(), Refusal> {
        let core = self.lock();
        let entry = core.units.get(&id).ok_or(Refusal::NoSuchUnit(id))?;
        if let Some(act) = entry.unit.kill() {
            log::info!("unit {id} is killed, as asked");
            carry_out(entry, act);
        }
        Ok(())
    }

    /// Forgets a VM that has ended.
    pub(crate) fn forget(&self, id: UnitId) -> Result<(), Refusal> {
        let mut core = self.lock();
        let entry = core.units.get(&id).ok_or(Refusal::NoSuchUnit(id))?;
        let Some(vm) = &entry.vm else {
            return Err(Refusal::NotForThisUnit { unit: id, why: "a daemon is never forgotten".into() });
        };
        if !entry.unit.ended() {
            return Err(Refusal::Running(id));
        }
        let kept = core.store.names(id);
        if !kept.is_empty() {
            let why = format!("it keeps descriptors ({}); release them first", kept.join(", "));
            return Err(Refusal::NotForThisUnit { unit: id, why });
        }
        vm.clear();
        if let Some(group) = &entry.group
            && let Err(e) = group.remove()
        {
            log::warn!("the control group of {id} is left: {e}");
        }
        core.units.remove(&id);
        Ok(())
    }

    /// Does what is due, and says when to look again.
    pub(crate) fn tick(&self) -> Option<Duration> {
        let mut core = self.lock();
        let ids: Vec<UnitId> = core.units.keys().copied().collect();
        for id in ids {
            let Some(entry) = core.units.get_mut(&id) else { continue };
            let Some(act) = entry.unit.due(clock::now()) else { continue };
            match act {
                Act::Start => start_daemon(entry, id, self),
                act => carry_out(entry, act),
            }
            core.publish(id);
        }
        core.units.values().filter_map(|e| e.unit.next()).min()
    }

    /// A child ended.
    pub(crate) fn reaped(&self, pid: i32, exit: Exit) {
        let mut core = self.lock();
        let found = core.units.iter_mut().find(|(_, entry)| entry.unit.pid() == Some(pid));
        let Some((&id, entry)) = found else { return };
        entry.unit.exited(exit, clock::moment());
        // Whatever it left behind goes with it, before it is started again.
        if let Some(group) = &entry.group {
            group.kill();
        }
        let state = entry.unit.status(clock::now()).state;
        let calm = core.powering.is_some() || matches!(exit, Exit::Code(0));
        let level = if calm { log::Level::Info } else { log::Level::Warn };
        log::log!(level, "unit {id} (process {pid}) {exit}; it is now {}", describe(state));
        core.publish(id);
        drop(core);
        self.poke();
    }

    /// Waits until `done`, at most until `deadline`; false when the time ran out.
    pub(crate) fn wait_until(&self, deadline: Duration, mut done: impl FnMut(&Core) -> bool) -> bool {
        let mut core = self.lock();
        loop {
            if done(&core) {
                return true;
            }
            let left = deadline.saturating_sub(clock::now());
            if left.is_zero() {
                return false;
            }
            core = self.changed.wait_timeout(core, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Core {
    /// Tells the watchers of a unit's state.
    pub(crate) fn publish(&mut self, id: UnitId) {
        if let Some(entry) = self.units.get(&id) {
            let status = entry.unit.status(clock::now());
            self.watchers.tell(&Event::Unit(status));
        }
    }

    /// Marks the host as going down; false when it was already.
    pub(crate) fn begin_power(&mut self, action: PowerAction) -> bool {
        if self.powering.is_some() {
            return false;
        }
        self.powering = Some(action);
        self.watchers.tell(&Event::PoweringDown(action));
        true
    }
}

fn describe(state: keelson_init_control::UnitState) -> String {
    match state {
        keelson_init_control::UnitState::Running => "running".into(),
        keelson_init_control::UnitState::Stopping => "stopping".into(),
        keelson_init_control::UnitState::Backoff { restart_in_ms } => {
            format!("to be started again in {restart_in_ms} ms")
        }
        keelson_init_control::UnitState::Ended => "ended".into(),
    }
}

fn start_daemon(entry: &mut Entry, id: UnitId, host: &Host) {
    entry.group = host.groups.open(id, VmLimits::default());
    match start::daemon(id, entry.group.as_ref(), host) {
        Ok(pid) => {
            log::info!("unit {id} runs as process {pid}");
            entry.unit.started(pid, clock::moment());
        }
        Err(errno) => {
            entry.unit.not_started(errno as i32, clock::moment());
            log::error!("unit {id} could not be started: {}", errno.desc());
        }
    }
}

/// Sends a unit's processes their signal.
fn carry_out(entry: &Entry, act: Act) {
    match act {
        Act::Start => {}
        Act::Terminate(pid) => {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        Act::Kill(pid) => {
            if !entry.group.as_ref().is_some_and(Group::kill) {
                // Each unit leads a process group of its own (setsid at its start).
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_init_control::UnitState;

    fn host() -> Host {
        Host::new(true, Groups::none(), false, Boot::default()).unwrap()
    }

    #[test]
    fn a_daemon_is_not_started_again_while_the_host_goes_down() {
        let host = host();
        host.add_daemon(UnitId::Hostd);
        host.stop(UnitId::Hostd, Duration::ZERO, Then::Stay).unwrap();
        assert!(host.lock().begin_power(PowerAction::PowerOff));
        assert_eq!(host.restart(UnitId::Hostd), Err(Refusal::GoingDown));
        assert_eq!(host.statuses()[0].state, UnitState::Ended);
        assert!(host.stop(UnitId::Hostd, Duration::ZERO, Then::Stay).is_ok());
    }

    #[test]
    fn a_watcher_hears_of_the_steps_before_and_after_it_came() {
        let host = host();
        host.step_at("mounts", 5);
        let events = host.watch().unwrap();
        host.step_at("machines", 7);
        let steps: Vec<(String, u64)> = events
            .try_iter()
            .filter_map(|e| if let Event::Step(step) = e { Some((step.name, step.at_ms)) } else { None })
            .collect();
        assert_eq!(steps, [("mounts".into(), 5), ("machines".into(), 7)]);
    }
}
