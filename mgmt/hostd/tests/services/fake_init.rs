//! init as far as the host agent knows it: units of VMs whose monitors are `fake_vmm.rs`'s, a descriptor store, logs, events.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use keelson_init_control::{
    Answer, Boot, Event, Exit, ExitRecord, Kept, LogLine, Refusal, Request, Step, UnitId, UnitState,
    UnitStatus,
};
use keelson_wire::{Listener, Served};

use crate::fake_vmm::{FakeVmm, Given};

#[derive(Default)]
struct State {
    units: BTreeMap<UnitId, UnitStatus>,
    kept: BTreeMap<(UnitId, String), OwnedFd>,
    monitors: BTreeMap<UnitId, Arc<FakeVmm>>,
    watchers: Vec<Sender<Event>>,
    logs: Vec<LogLine>,
    told: Vec<String>,
    /// How often all units were asked for.
    listed: u32,
    /// VMs are refused.
    refuse: bool,
    /// Requests, by their names, whose next conversation breaks: before it is carried out or after.
    breaks: BTreeMap<&'static str, Break>,
    /// VMs are started, and it is told that they are not.
    deny: bool,
}

/// Where a conversation breaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    Before,
    After,
}

pub(crate) struct FakeInit {
    run: PathBuf,
    boot: Boot,
    state: Mutex<State>,
    changed: Condvar,
}

impl FakeInit {
    pub(crate) fn start(run: &Path, boot: Boot) -> Arc<Self> {
        let init =
            Arc::new(Self { run: run.to_owned(), boot, state: Mutex::default(), changed: Condvar::new() });
        let listener = Listener::bind(run.join("init.sock")).unwrap();
        let serving = Arc::clone(&init);
        std::thread::spawn(move || {
            keelson_wire::serve(&listener, |_| true, move |request, fds, _| serving.handle(request, fds))
        });
        init
    }

    fn handle(self: &Arc<Self>, request: Request, fds: Vec<OwnedFd>) -> Served<Answer, Refusal, Event> {
        let words = format!("{request:?}");
        let name = words.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let broken = self.state.lock().unwrap().breaks.remove(name);
        // The end of its thread closes a connection without an answer.
        let cut = |at| {
            if broken == Some(at) {
                std::panic::resume_unwind(Box::new("as the test wants it"));
            }
        };
        cut(Break::Before);
        let served = self.answer(request, fds);
        cut(Break::After);
        served
    }

    fn answer(self: &Arc<Self>, request: Request, fds: Vec<OwnedFd>) -> Served<Answer, Refusal, Event> {
        let mut state = self.state.lock().unwrap();
        let done = Served::Answer(Answer::Done, vec![]);
        match request {
            Request::Boot => Served::Answer(Answer::Boot(Box::new(self.boot.clone())), vec![]),
            Request::Units => {
                state.listed += 1;
                self.changed.notify_all();
                Served::Answer(Answer::Units(state.units.values().cloned().collect()), vec![])
            }
            Request::StartVm { id, fds: names, keep, limits } => {
                let unit = UnitId::Vm(id);
                if state.refuse {
                    return Served::Refused(Refusal::Failed {
                        what: "starting".into(),
                        why: "this test says no".into(),
                    });
                }
                if state.units.get(&unit).is_some_and(|u| u.state != UnitState::Ended) {
                    return Served::Refused(Refusal::Running(unit));
                }
                assert_eq!(names.len(), fds.len());
                assert!(limits.threads.is_some());
                state.told.push(format!(
                    "processors of {id}: weight {:?}, limit {:?}",
                    limits.cpu_weight, limits.cpu_limit_percent
                ));
                for name in &keep {
                    let at = names.iter().position(|n| n == name).unwrap();
                    state.kept.insert((unit, name.clone()), fds[at].try_clone().unwrap());
                }
                let status = UnitStatus {
                    id: unit,
                    state: UnitState::Running,
                    pid: Some(1000),
                    started_ms: 1,
                    restarts: 0,
                    exits: vec![],
                };
                state.units.insert(unit, status);
                drop(state);
                self.publish(unit);
                let given: Given = names.into_iter().zip(fds).collect();
                let init = Arc::clone(self);
                let monitor =
                    FakeVmm::start(&self.run.join("vm").join(id.to_string()), given, move |code, error| {
                        init.ended(unit, code, error)
                    });
                if let Some(monitor) = monitor {
                    self.state.lock().unwrap().monitors.insert(unit, monitor);
                }
                if self.state.lock().unwrap().deny {
                    return Served::Refused(Refusal::Failed {
                        what: "starting".into(),
                        why: "this test denies it".into(),
                    });
                }
                done
            }
            Request::Kill { unit } => {
                state.told.push(format!("kill {unit}"));
                let Some(monitor) = state.monitors.get(&unit).cloned() else {
                    return Served::Refused(Refusal::NoSuchUnit(unit));
                };
                drop(state);
                monitor.end(-9, None);
                done
            }
            Request::Forget { unit } => {
                if state.kept.keys().any(|(u, _)| *u == unit) {
                    return Served::Refused(Refusal::NotForThisUnit {
                        unit,
                        why: "it keeps descriptors".into(),
                    });
                }
                if state.units.remove(&unit).is_none() {
                    return Served::Refused(Refusal::NoSuchUnit(unit));
                }
                state.monitors.remove(&unit);
                self.changed.notify_all();
                done
            }
            Request::Kept => {
                let kept = state
                    .kept
                    .keys()
                    .map(|(unit, name)| Kept { unit: *unit, name: name.clone(), bytes: 0 })
                    .collect();
                Served::Answer(Answer::Kept(kept), vec![])
            }
            Request::Release { unit, name } => match state.kept.remove(&(unit, name.clone())) {
                Some(_) => done,
                None => Served::Refused(Refusal::NoSuchDescriptor { unit, name }),
            },
            Request::Logs { since, max, source } => {
                let lines = state
                    .logs
                    .iter()
                    .filter(|l| l.seq >= since && source.as_ref().is_none_or(|s| *s == l.source))
                    .take(max as usize);
                Served::Answer(Answer::Logs(lines.cloned().collect()), vec![])
            }
            Request::SetHostname { name } => {
                state.told.push(format!("hostname {name}"));
                done
            }
            Request::Power { action, guest_deadline_ms } => {
                state.told.push(format!("power {action:?} {guest_deadline_ms}"));
                done
            }
            Request::Watch => {
                let (sender, events) = channel();
                for unit in state.units.values() {
                    sender.send(Event::Unit(unit.clone())).unwrap();
                }
                for step in &self.boot.timeline {
                    sender.send(Event::Step(step.clone())).unwrap();
                }
                state.watchers.push(sender);
                Served::Stream(
                    Answer::Done,
                    Box::new(move |stream| {
                        events.iter().take_while(|e| stream.send(e).is_ok()).for_each(drop)
                    }),
                )
            }
            other => panic!("the host agent asked init for {other:?}"),
        }
    }

    fn publish(&self, unit: UnitId) {
        let mut state = self.state.lock().unwrap();
        let event = Event::Unit(state.units[&unit].clone());
        state.watchers.retain(|w| w.send(event.clone()).is_ok());
    }

    /// Tells that a step of the boot is done.
    pub(crate) fn step(&self, name: &str) {
        let event = Event::Step(Step { name: name.into(), at_ms: 50 });
        self.state.lock().unwrap().watchers.retain(|w| w.send(event.clone()).is_ok());
    }

    fn ended(&self, unit: UnitId, code: i32, error: Option<String>) {
        let mut state = self.state.lock().unwrap();
        if let Some(text) = error {
            let seq = state.logs.len() as u64 + 1;
            state.logs.push(LogLine { seq, time_ms: 1, source: unit.to_string(), priority: 3, text });
        }
        let exit = if code < 0 { Exit::Signal(-code) } else { Exit::Code(code) };
        if let Some(status) = state.units.get_mut(&unit) {
            status.state = UnitState::Ended;
            status.pid = None;
            status.exits.push(ExitRecord { exit, time_ms: 1_700_000_000_000, ran_ms: 5 });
        }
        drop(state);
        self.publish(unit);
    }

    pub(crate) fn monitor(&self, id: uuid::Uuid) -> Arc<FakeVmm> {
        Arc::clone(&self.state.lock().unwrap().monitors[&UnitId::Vm(id)])
    }

    /// The names of all kept descriptors and units.
    pub(crate) fn holds(&self) -> (Vec<String>, Vec<String>) {
        let state = self.state.lock().unwrap();
        (
            state.kept.keys().map(|(u, n)| format!("{u} {n}")).collect(),
            state.units.keys().map(ToString::to_string).collect(),
        )
    }

    /// Waits until nothing of any VM is left.
    pub(crate) fn wait_empty(&self) {
        let state = self.state.lock().unwrap();
        let (state, _) =
            self.changed.wait_timeout_while(state, Duration::from_secs(10), |s| !s.units.is_empty()).unwrap();
        assert!(state.units.is_empty() && state.kept.is_empty());
    }

    /// Waits until a host agent has asked for all units: it follows them.
    pub(crate) fn wait_watched(&self) {
        let state = self.state.lock().unwrap();
        let (state, _) =
            self.changed.wait_timeout_while(state, Duration::from_secs(20), |s| s.listed == 0).unwrap();
        assert!(state.listed > 0, "nobody watches");
    }

    pub(crate) fn told(&self) -> Vec<String> {
        self.state.lock().unwrap().told.clone()
    }

    /// The next conversation with this request breaks.
    pub(crate) fn break_next(&self, request: &'static str, at: Break) {
        self.state.lock().unwrap().breaks.insert(request, at);
    }

    pub(crate) fn deny(&self, deny: bool) {
        self.state.lock().unwrap().deny = deny;
    }

    pub(crate) fn refuse(&self, refuse: bool) {
        self.state.lock().unwrap().refuse = refuse;
    }
}
