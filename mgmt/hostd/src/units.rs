//! What init says of its units, kept current by its events, and the way to ask init for something.
//!
//! Nothing about a running VM lives only in the host agent: whether one runs is read from here, and here from init. While init
//! cannot be reached nothing is known, and what would need to know is refused.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keelson_api::{Fault, Problem};
use keelson_init_control::logging::chain;
use keelson_init_control::{Client, Error, Event, Request, STEP_MACHINES, UnitId, UnitState, UnitStatus};
use uuid::Uuid;

use crate::problems;

/// The pauses between attempts to reach init: first, longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// init, as the host agent knows it.
#[derive(Debug)]
pub struct Units {
    socket: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the events flow, so that `units` is current.
    connected: bool,
    /// Why not, for conditions.
    trouble: Option<String>,
    units: BTreeMap<UnitId, UnitStatus>,
    going_down: bool,
    /// Whether init has loaded the drivers of virtual machines, or knows why not.
    machines: bool,
}

impl Units {
    /// Follows the init that listens at `socket`. Each VM whose unit has begun or ended is sent to `seen`, also those that had
    /// before. Returns when the first attempt to reach init has succeeded or failed.
    pub fn follow(socket: PathBuf, seen: Sender<Uuid>) -> std::io::Result<Arc<Self>> {
        let units = Arc::new(Self { socket, state: Mutex::default(), changed: Condvar::new() });
        let follower = Arc::clone(&units);
        std::thread::Builder::new().name("units".into()).spawn(move || follower.run(&seen))?;
        let state = units.lock();
        let first = |s: &mut State| !s.connected && s.trouble.is_none();
        drop(
            units
                .changed
                .wait_timeout_while(state, Duration::from_secs(10), first)
                .unwrap_or_else(PoisonError::into_inner),
        );
        Ok(units)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, seen: &Sender<Uuid>) {
        let mut pause = BACKOFF.0;
        loop {
            let (trouble, lived) = self.listen(seen);
            {
                let mut state = self.lock();
                if state.connected || state.trouble.is_none() {
                    log::warn!("init cannot be heard: {trouble}");
                }
                state.connected = false;
                state.trouble = Some(trouble);
            }
            self.changed.notify_all();
            pause = if lived { BACKOFF.0 } else { (pause * 2).min(BACKOFF.1) };
            // Nothing tells when init's socket is there again, so this one wait is for time alone.
            let state = self.lock();
            drop(self.changed.wait_timeout_while(state, pause, |_| true));
        }
    }

    /// Hears events until they end; says why they did, and whether there were any.
    fn listen(&self, seen: &Sender<Uuid>) -> (String, bool) {
        let events = match Client::connect_to(&self.socket).and_then(Client::watch) {
            Ok(events) => events,
            Err(e) => return (chain(&e), false),
        };
        // The list is read after the events have begun: what changes in between comes as an event again.
        match self.client().and_then(|mut c| c.units()) {
            Ok(list) => {
                let mut state = self.lock();
                state.units = list.iter().map(|u| (u.id, u.clone())).collect();
                state.connected = true;
                state.trouble = None;
                drop(state);
                self.changed.notify_all();
                list.iter().for_each(|unit| announce(unit, seen));
            }
            Err(e) => return (chain(&e), false),
        }
        log::info!("init is heard");
        for event in events {
            match event {
                Ok(Event::Unit(unit)) => {
                    self.lock().units.insert(unit.id, unit.clone());
                    self.changed.notify_all();
                    announce(&unit, seen);
                }
                Ok(Event::PoweringDown(_)) => {
                    self.lock().going_down = true;
                    self.changed.notify_all();
                }
                Ok(Event::Step(step)) => {
                    if step.name == STEP_MACHINES {
                        self.lock().machines = true;
                        self.changed.notify_all();
                    }
                }
                Err(e) => return (chain(&e), true),
            }
        }
        ("init closed its stream of events".into(), true)
    }

    fn client(&self) -> Result<Client, Error> {
        Client::connect_to(&self.socket)
    }

    /// Asks init for something; `doing` begins the error's sentence.
    pub fn ask<T>(
        &self,
        doing: &str,
        ask: impl FnOnce(&mut Client) -> Result<T, Error>,
    ) -> Result<T, Problem> {
        self.call(ask).map_err(|e| problems::init(doing, &e))
    }

    /// The same for a caller to whom it matters why it failed.
    pub fn call<T>(&self, ask: impl FnOnce(&mut Client) -> Result<T, Error>) -> Result<T, Error> {
        self.client().and_then(|mut client| ask(&mut client))
    }

    /// Tells init something.
    pub fn tell(&self, doing: &str, request: &Request) -> Result<(), Problem> {
        self.ask(doing, |c| c.tell(request))
    }

    /// Why init cannot be heard; `None` while it can.
    pub fn trouble(&self) -> Option<String> {
        let state = self.lock();
        if state.connected {
            None
        } else {
            Some(state.trouble.clone().unwrap_or_else(|| "it has not answered yet".into()))
        }
    }

    /// Whether the host is shutting down.
    pub fn going_down(&self) -> bool {
        self.lock().going_down
    }

    /// Whether init is still loading the drivers of virtual machines, so that no KVM means nothing yet.
    pub fn drivers_loading(&self) -> bool {
        let state = self.lock();
        state.connected && !state.machines
    }

    /// Waits until init has loaded the drivers of virtual machines or the host goes down, at most until `deadline`.
    pub fn await_drivers(&self, deadline: Instant, stop: impl Fn() -> bool) -> Waited<()> {
        self.wait_for(deadline, stop, |state| (state.machines || state.going_down).then_some(()))
    }

    /// A VM's unit. Refused while init cannot be heard: a VM that runs must not be taken for one that is off.
    pub fn vm(&self, id: Uuid) -> Result<Option<UnitStatus>, Problem> {
        let state = self.lock();
        state.known()?;
        Ok(state.units.get(&UnitId::Vm(id)).cloned())
    }

    /// The VMs whose process has not ended.
    pub fn running_vms(&self) -> Result<Vec<Uuid>, Problem> {
        let state = self.lock();
        state.known()?;
        let running = state.units.values().filter(|u| u.state != UnitState::Ended);
        Ok(running.filter_map(|u| if let UnitId::Vm(id) = u.id { Some(id) } else { None }).collect())
    }

    /// Forgets a unit that init was told to forget: that brings no event.
    pub fn forgotten(&self, id: UnitId) {
        self.lock().units.remove(&id);
        self.changed.notify_all();
    }

    /// Waits until `seen` finds what it looks for in a VM's unit (`None`: there is no such unit), at most until `deadline`.
    /// `stop` is asked at each change and at each [`Units::wake`].
    pub fn wait<T>(
        &self,
        id: Uuid,
        deadline: Instant,
        stop: impl Fn() -> bool,
        seen: impl Fn(Option<&UnitStatus>) -> Option<T>,
    ) -> Waited<T> {
        self.wait_for(deadline, stop, |state| seen(state.units.get(&UnitId::Vm(id))))
    }

    fn wait_for<T>(
        &self,
        deadline: Instant,
        stop: impl Fn() -> bool,
        seen: impl Fn(&State) -> Option<T>,
    ) -> Waited<T> {
        let mut state = self.lock();
        loop {
            if state.connected
                && let Some(found) = seen(&state)
            {
                return Waited::Seen(found);
            }
            if stop() {
                return Waited::Stopped;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::TimedOut;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has all who wait look at their `stop` again.
    pub fn wake(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited<T> {
    /// With what it waited for.
    Seen(T),
    /// It was told to stop.
    Stopped,
    /// The deadline passed.
    TimedOut,
}

impl State {
    fn known(&self) -> Result<(), Problem> {
        if self.connected {
            return Ok(());
        }
        let why = self.trouble.clone().unwrap_or_else(|| "it has not answered yet".into());
        Err(Problem::new(
            Fault::HostNotReachable,
            format!("whether the VM runs is not known, since init cannot be heard: {why}"),
        )
        .remedy("try again in a few seconds"))
    }
}

fn announce(unit: &UnitStatus, seen: &Sender<Uuid>) {
    if let UnitId::Vm(id) = unit.id {
        // The receiver lives as long as the process.
        let _ = seen.send(id);
    }
}
