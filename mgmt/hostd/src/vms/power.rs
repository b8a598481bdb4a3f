//! Changing a VM's power state. Each change is a task; what can be refused is refused before the task begins.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use keelson_api::{Fault, PowerState, Problem, Task, VmPower, VmPowerAction};
use keelson_init_control::logging::chain;
use keelson_init_control::{Refusal as InitRefusal, Request as InitRequest, UnitId, UnitState};
use keelson_vmm_control::Request as VmmRequest;
use keelson_wire::CallError;
use uuid::Uuid;

use super::document::{LastRun, SCHEMA, VmDocument};
use super::launch::NotStarted;
use super::{Vms, launch, monitor};
use crate::datastores::DatastorePath;
use crate::hardware::{self, HOST_RESERVE_MIB};
use crate::ownership::Claim;
use crate::problems::argument;
use crate::tasks::{Plan, Progress};
use crate::units::Waited;

/// How long a monitor may take from its start to its first answer. Large memory and an emulated server are slow.
const START: Duration = Duration::from_secs(120);
/// How long one status call waits within that.
const START_CALL: Duration = Duration::from_secs(10);
/// How long a VM may take to be gone after it was killed.
const KILLED: Duration = Duration::from_secs(20);
/// How long a guest may take to shut down.
const SHUTDOWN: Duration = Duration::from_secs(300);
/// How long init may take to load the drivers of virtual machines after hostd has begun.
const DRIVERS: Duration = Duration::from_secs(60);
/// What a monitor needs beside the guest's memory, in MiB.
const MONITOR_MIB: u64 = 16;

impl Vms {
    /// Begins a change of a VM's power state.
    pub fn power(self: &Arc<Self>, id: Uuid, power: VmPower, who: &str) -> Result<Task, Problem> {
        let VmPower { action, force } = power;
        if force && action != VmPowerAction::On {
            return Err(argument("force", "only a power-on can be forced", "leave it out"));
        }
        let entry = self.inventory.get(id)?;
        let document = entry.document.clone()?;
        let name = match action {
            VmPowerAction::On => "Power On Virtual Machine",
            VmPowerAction::Off => "Power Off Virtual Machine",
            VmPowerAction::Reset => "Reset Virtual Machine",
            VmPowerAction::Shutdown => "Shut Down Guest",
            VmPowerAction::Pause => "Pause Virtual Machine",
            VmPowerAction::Resume => "Resume Virtual Machine",
        };
        // Held before the state is looked at, so that it cannot change in between.
        let hold = self.tasks.hold(&id.to_string(), name)?;
        self.allowed(id, &document, action)?;
        let on = match action {
            VmPowerAction::On => {
                Some(On { claim: self.right_to_run(&document.name, &entry, force)?, who: who.to_owned() })
            }
            _ => None,
        };
        let units = Arc::clone(&self.units);
        let cancelable = matches!(action, VmPowerAction::On | VmPowerAction::Shutdown);
        let cancel = cancelable.then(|| Arc::new(move || units.wake()) as Arc<dyn Fn() + Send + Sync>);
        let vms = Arc::clone(self);
        let plan = Plan { name, target: id.to_string(), who: who.into(), cancel };
        self.tasks.start_held(hold, plan, move |progress| match (action, on) {
            (VmPowerAction::On, Some(on)) => vms.power_on(id, on, progress),
            (VmPowerAction::On, None) => {
                Err(Problem::new(Fault::SystemError, "a power-on without a right to it"))
            }
            (VmPowerAction::Off, _) => vms.power_off(&document, progress),
            (VmPowerAction::Shutdown, _) => vms.shut_down(&document, progress),
            (VmPowerAction::Reset, _) => vms.tell_monitor(&document, &VmmRequest::Reset, "reset"),
            (VmPowerAction::Pause, _) => vms.tell_monitor(&document, &VmmRequest::Pause, "paused"),
            (VmPowerAction::Resume, _) => vms.tell_monitor(&document, &VmmRequest::Resume, "resumed"),
        })
    }

    fn allowed(&self, id: Uuid, document: &VmDocument, action: VmPowerAction) -> Result<(), Problem> {
        let on = self.unit(id)?.is_some();
        let state = if on { self.look(id).0 } else { PowerState::PoweredOff };
        let name = &document.name;
        let refused = |is: &str, remedy: &str| {
            Err(Problem::new(Fault::InvalidPowerState, format!("{name} is {is}")).remedy(remedy))
        };
        match (action, state) {
            (VmPowerAction::On, PowerState::PoweredOn) => {
                refused("powered on already", "there is nothing to do")
            }
            (VmPowerAction::On, PowerState::Paused) => refused("powered on and paused", "resume it instead"),
            (VmPowerAction::On, PowerState::PoweredOff | PowerState::Elsewhere) => {
                if self.units.going_down() {
                    return Err(Problem::new(Fault::HostNotReachable, "the host is shutting down")
                        .remedy("wait until the host is back"));
                }
                // While drivers are loaded the task waits for them.
                if !self.units.drivers_loading() {
                    hardware::open_kvm().map_err(|e| e.problem(name))?;
                }
                self.check_memory(id, document).map(|_| ())
            }
            (_, PowerState::PoweredOff | PowerState::Elsewhere) => {
                refused("powered off", "power it on first")
            }
            (VmPowerAction::Pause, PowerState::Paused) => refused("paused already", "there is nothing to do"),
            (VmPowerAction::Resume, PowerState::PoweredOn) => refused("not paused", "there is nothing to do"),
            (VmPowerAction::Shutdown | VmPowerAction::Reset, PowerState::Paused) => {
                refused("paused", "resume it first")
            }
            (
                VmPowerAction::Off | VmPowerAction::Reset | VmPowerAction::Shutdown | VmPowerAction::Pause,
                PowerState::PoweredOn,
            )
            | (VmPowerAction::Off | VmPowerAction::Resume, PowerState::Paused) => Ok(()),
        }
    }

    /// Whether a VM's memory can be given: what powered-on VMs are configured with, and the host's own share, are taken.
    fn check_memory(&self, id: Uuid, document: &VmDocument) -> Result<(), Problem> {
        let admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        self.memory_fits(id, document, &admitted)
    }

    fn memory_fits(
        &self,
        id: Uuid,
        document: &VmDocument,
        admitted: &std::collections::BTreeMap<Uuid, u64>,
    ) -> Result<(), Problem> {
        let (total, available) = hardware::memory();
        let running: std::collections::BTreeSet<Uuid> = self
            .units
            .running_vms()?
            .into_iter()
            .chain(admitted.keys().copied())
            .filter(|other| *other != id)
            .collect();
        let taken: u64 = running
            .iter()
            .map(|other| admitted.get(other).copied().unwrap_or_else(|| self.memory_of(*other)) + MONITOR_MIB)
            .sum();
        let left = (total >> 20).saturating_sub(HOST_RESERVE_MIB).saturating_sub(taken).min(available >> 20);
        let needed = document.memory_mib + MONITOR_MIB;
        if needed <= left {
            return Ok(());
        }
        let detail = format!(
            "{} needs {needed} MiB (its monitor included), and {left} MiB can be given",
            document.name
        );
        Err(Problem::new(Fault::InsufficientResourcesFault, detail)
            .field("memory_mib")
            .remedy("power off other VMs, or give this one less memory"))
    }

    /// Promises a VM its memory until it is among init's units.
    fn admit(&self, id: Uuid, document: &VmDocument) -> Result<Admitted<'_>, Problem> {
        let _files = self.no_power_on();
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        self.memory_fits(id, document, &admitted)?;
        self.reservation_fits(document, admitted.keys().copied())?;
        admitted.insert(id, document.memory_mib);
        Ok(Admitted { vms: self, id })
    }

    /// Whether a VM is being powered on.
    pub(super) fn is_admitted(&self, id: Uuid) -> bool {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }

    fn power_on(&self, id: Uuid, on: On, progress: &Progress) -> Result<String, Problem> {
        self.await_released(id)?;
        let entry = self.inventory.get(id)?;
        let document = entry.document?;
        let name = &document.name;
        self.await_drivers(name, progress)?;
        let _admitted = self.admit(id, &document)?;
        progress.say(10, "Opening its files");
        let mut launch = launch::open(self, &document, &entry.directory)?;
        // From here on it is quicker to finish than to go back.
        progress.not_cancelable()?;
        progress.say(20, "Taking its ownership");
        self.take_running(id, name, &entry.directory, on.claim, &on.who)?;
        let run = LastRun {
            schema: SCHEMA,
            host_id: self.agent.host_id(),
            boot_id: self.boot_id.clone(),
            started: jiff::Timestamp::now(),
            ended: None,
            exit: None,
        };
        let written = self
            .home(&entry.directory)
            .and_then(|home| run.store(&home, &entry.directory.to_string()))
            .inspect_err(|e| self.leave(id, name, &entry.directory, &format!("It was not started: {e}")));
        written?;
        self.inventory.ran(id, run.clone());
        let prepared = (|| {
            if !document.nics.is_empty() {
                progress.say(30, "Connecting its network adapters");
                launch::open_taps(self, &mut launch, &document)?;
            }
            progress.say(50, "Starting its monitor");
            Ok(())
        })();
        let started = match prepared {
            Ok(()) => match launch.start(self, &document) {
                Ok(()) => Ok(()),
                Err(NotStarted { problem, perhaps: true }) => {
                    return Err(self.take_back(id, name, &entry.directory, run, problem));
                }
                Err(NotStarted { problem, perhaps: false }) => {
                    self.not_started(id, name, &entry.directory, &problem);
                    Err(problem)
                }
            },
            Err(problem) => {
                self.leave(id, name, &entry.directory, &format!("It was not started: {problem}"));
                Err(problem)
            }
        };
        if let Err(problem) = started {
            self.close_taps(id, &document);
            let run = LastRun {
                ended: Some(jiff::Timestamp::now()),
                exit: Some(format!("It was not started: {problem}")),
                ..run
            };
            self.put_down(id, &entry.directory, run);
            return Err(problem);
        }
        progress.say(80, "Waiting for the guest's first instruction");
        self.await_first_answer(id, &document)
    }

    /// Waits until a host that has just booted has loaded its drivers; then KVM is there or it is known why not.
    fn await_drivers(&self, name: &str, progress: &Progress) -> Result<(), Problem> {
        if self.units.drivers_loading() {
            progress.say(5, "Waiting for the host's virtualization drivers");
        }
        let waited = self.units.await_drivers(Instant::now() + DRIVERS, || progress.cancelled());
        progress.check()?;
        match (waited, hardware::open_kvm()) {
            (_, Ok(_)) => Ok(()),
            (Waited::TimedOut, Err(_)) => {
                let detail = format!(
                    "{name} cannot be powered on: the host has not loaded its virtualization drivers within {} s",
                    DRIVERS.as_secs()
                );
                Err(Problem::new(Fault::HostNotReachable, detail)
                    .remedy("look at the kernel's and init's lines in the host's log, then try again"))
            }
            (Waited::Seen(()) | Waited::Stopped, Err(no)) => Err(no.problem(name)),
        }
    }

    /// After a start without an answer: the VM is killed if it was started, so that none runs whose task has failed. Its taps are
    /// left to whoever has them: the monitor, or init with a request that it has not carried out. They vanish with the last copy.
    fn take_back(
        &self,
        id: Uuid,
        name: &str,
        directory: &DatastorePath,
        run: LastRun,
        problem: Problem,
    ) -> Problem {
        let told = |and: String, remedy: &str| {
            Problem::new(problem.fault, format!("{}; {and}", problem.detail)).remedy(remedy)
        };
        match self.units.call(|c| c.tell(&InitRequest::Kill { unit: UnitId::Vm(id) })) {
            Ok(()) => {
                // Its end is written down only after it was released; until then init's event may still be on its way.
                let over = |u: Option<&keelson_init_control::UnitStatus>| {
                    u.is_none().then(|| self.exit_of(id)).flatten()
                };
                match self.units.wait(id, Instant::now() + KILLED, || false, over) {
                    Waited::Seen(_) => {
                        told("it had been started, and was killed".into(), "power it on again")
                    }
                    Waited::Stopped | Waited::TimedOut => told(
                        format!(
                            "it had been started and was killed, but is not gone after {} s",
                            KILLED.as_secs()
                        ),
                        "read the VM's state, and look at the host's log",
                    ),
                }
            }
            Err(CallError::Refused(InitRefusal::NoSuchUnit(_))) => {
                let exit = format!("It was not started: {problem}");
                self.leave(id, name, directory, &exit);
                let run = LastRun { ended: Some(jiff::Timestamp::now()), exit: Some(exit), ..run };
                self.put_down(id, directory, run);
                problem
            }
            Err(error) => {
                log::warn!("whether {name} was started is not known: {}", chain(&error));
                // It is not given up before init is heard again.
                let _ = self.tended.send(id);
                told(
                    "whether it was started is not known".into(),
                    "read the VM's state as soon as init answers again: if it runs, it is shown so",
                )
            }
        }
    }

    fn close_taps(&self, id: Uuid, document: &VmDocument) {
        if !document.nics.is_empty()
            && let Err(problem) = self.netd.ask("its adapters could not be removed", |c| c.close_taps(id))
        {
            log::warn!("{}: {problem}", document.name);
        }
    }

    /// Waits until the monitor says that the guest runs. A monitor that ends instead says why by its exit.
    fn await_first_answer(&self, id: Uuid, document: &VmDocument) -> Result<String, Problem> {
        let deadline = Instant::now() + START;
        let socket = self.agent.paths.vm_control(id);
        let name = &document.name;
        loop {
            let error = match monitor::status_within(&socket, START_CALL) {
                Ok(status) => {
                    // init's event may still be on its way: whoever sees the task ended must see the VM on.
                    self.units.wait(
                        id,
                        Instant::now() + START_CALL,
                        || false,
                        |u| (u.is_some() || self.exit_of(id).is_some()).then_some(()),
                    );
                    return Ok(match status.start_us / 1000 {
                        // The monitor has answered before the guest's first instruction.
                        0 => format!("{name} is powered on"),
                        ms => format!(
                            "{name} is powered on ({ms} ms from the monitor's start to the guest's first instruction)"
                        ),
                    });
                }
                Err(error) => error,
            };
            // The end of a monitor closes its sockets a moment before init reports it. One that lives and is silent is asked again.
            let gone = |u: Option<&keelson_init_control::UnitStatus>| {
                u.is_none().then(|| self.exit_of(id)).flatten()
            };
            if let Waited::Seen(exit) =
                self.units.wait(id, (Instant::now() + Duration::from_secs(1)).min(deadline), || false, gone)
            {
                return Err(Problem::new(Fault::SystemError, format!("{name} did not start: {exit}"))
                    .remedy(format!("look at the host's log of `vm/{id}`")));
            }
            if Instant::now() >= deadline {
                log::warn!("{name} is killed, since its monitor did not answer: {error}");
                self.units
                    .tell("the monitor could not be killed", &InitRequest::Kill { unit: UnitId::Vm(id) })?;
                self.await_gone(id, KILLED, || false);
                let detail = format!(
                    "{name} did not start: its monitor did not answer within {} s, so it was killed",
                    START.as_secs()
                );
                return Err(Problem::new(Fault::SystemError, detail)
                    .remedy(format!("look at the host's log of `vm/{id}`")));
            }
        }
    }

    /// How the present run ended; `None` while it has not.
    fn exit_of(&self, id: Uuid) -> Option<String> {
        self.inventory.get(id).ok()?.last_run?.exit
    }

    fn power_off(&self, document: &VmDocument, progress: &Progress) -> Result<String, Problem> {
        let id = document.id;
        let killed = monitor::tell(
            &self.agent.paths.vm_control(id),
            &VmmRequest::Kill,
            "the monitor did not end the machine",
        );
        progress.say(50, "Waiting for its monitor to end");
        let gone = match killed {
            Ok(()) => self.await_gone(id, KILLED, || false),
            Err(problem) => {
                log::warn!("{}: {problem}; init kills it", document.name);
                Waited::TimedOut
            }
        };
        if gone != Waited::Seen(()) {
            match self
                .units
                .tell("the monitor could not be killed", &InitRequest::Kill { unit: UnitId::Vm(id) })
            {
                // It ended by itself meanwhile.
                Err(problem) if problem.fault == Fault::InvalidPowerState => {}
                other => other?,
            }
            if self.await_gone(id, KILLED, || false) != Waited::Seen(()) {
                let detail =
                    format!("{} was killed, but is not gone after {} s", document.name, KILLED.as_secs());
                return Err(Problem::new(Fault::SystemError, detail)
                    .remedy("look at the host's log; restart the host if a storage operation hangs"));
            }
        }
        Ok(format!("{} is powered off", document.name))
    }

    fn shut_down(&self, document: &VmDocument, progress: &Progress) -> Result<String, Problem> {
        let name = &document.name;
        monitor::tell(
            &self.agent.paths.vm_control(document.id),
            &VmmRequest::PowerButton,
            &format!("the power button of {name} could not be pressed"),
        )?;
        progress.say(20, format!("Waiting for the guest to shut down, at most {} s", SHUTDOWN.as_secs()));
        match self.await_gone(document.id, SHUTDOWN, || progress.cancelled()) {
            Waited::Seen(()) => Ok(format!("{name} has shut down and is powered off")),
            Waited::Stopped => {
                let detail = format!(
                    "the wait for {name} was cancelled; its power button was pressed, so it may still shut down"
                );
                Err(Problem::new(Fault::SystemError, detail).remedy("read the VM's state"))
            }
            Waited::TimedOut => {
                let detail =
                    format!("{name} did not shut down within {} s of its power button", SHUTDOWN.as_secs());
                Err(Problem::new(Fault::SystemError, detail).remedy("does the guest listen to the button (acpid, systemd-logind)? Power it off if it must end"))
            }
        }
    }

    fn tell_monitor(
        &self,
        document: &VmDocument,
        request: &VmmRequest,
        done: &str,
    ) -> Result<String, Problem> {
        let name = &document.name;
        monitor::tell(
            &self.agent.paths.vm_control(document.id),
            request,
            &format!("{name} could not be {done}"),
        )?;
        Ok(format!("{name} was {done}"))
    }

    /// Waits until a VM's unit has ended and what it held is released.
    fn await_gone(&self, id: Uuid, time: Duration, stop: impl Fn() -> bool) -> Waited<()> {
        self.units.wait(id, Instant::now() + time, stop, |unit| unit.is_none().then_some(()))
    }

    /// Waits until what an ended run held is released; fails when the VM runs.
    pub(super) fn await_released(&self, id: Uuid) -> Result<(), Problem> {
        let look = |unit: Option<&keelson_init_control::UnitStatus>| match unit {
            None => Some(true),
            Some(unit) => (unit.state != UnitState::Ended).then_some(false),
        };
        match self.units.wait(id, Instant::now() + KILLED, || false, look) {
            Waited::Seen(true) => Ok(()),
            Waited::Seen(false) => Err(Problem::new(Fault::InvalidPowerState, "the VM is powered on")
                .remedy("read the VM's state again")),
            Waited::Stopped | Waited::TimedOut => {
                Err(Problem::new(Fault::HostNotReachable, "what the VM's last run held is not released yet")
                    .remedy("try again; see the host's conditions"))
            }
        }
    }
}

/// A power-on that may begin.
struct On {
    claim: Claim,
    who: String,
}

/// Memory promised to a VM while this exists.
struct Admitted<'a> {
    vms: &'a Vms,
    id: Uuid,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.vms.admitted.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
