//! A machine: a board, and the one thread that decides about it. Orders come from control connections, signals and the guest, and
//! are carried out one at a time.

mod board;
mod board_saved;
mod gate;
mod slots;
mod suspend;
mod vcpu;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use keelson_vmm_control::{
    Answer, Event, ExitCode, MachineConfig, MachineState, Refusal, Request, StateSet, Status,
};
use keelson_wire::Stream;

use board::Board;
pub use board_saved::SaveError;
pub use slots::DeviceError;
pub use suspend::Restore;
pub(crate) use vcpu::cpu_set;

use crate::boot::{BootError, Payload};
use crate::console::Console;
use crate::devices::bus::Overlap;
use crate::kvm::{Host, KvmError};
use crate::memory::Memory;
use crate::state::StateError;
use crate::state::file::StateFile;
use crate::state::fill::Filling;
use crate::state::sections::Sections;

/// What a machine is made of, besides its description: all of it from descriptors.
#[derive(Debug)]
pub struct Parts {
    /// The description, validated.
    pub config: MachineConfig,
    /// The host's KVM.
    pub host: Host,
    /// Guest memory.
    pub memory: Memory,
    /// What is booted.
    pub payload: Payload,
    /// One for each disk of the description.
    pub disks: Vec<File>,
    /// One tap for each network adapter of the description.
    pub taps: Vec<OwnedFd>,
    /// The console.
    pub console: Arc<Console>,
    /// When the process was executed.
    pub executed: Instant,
}

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The payload.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A PCI device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Two devices want one address: a fault of ours.
    #[error("two devices want the same address")]
    Overlap(#[from] Overlap),
    /// A saved state.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What the guest, or a vCPU, brought about. The vCPUs enter the guest no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// Switched off.
    PowerOff,
    /// Reset by a register.
    Reset,
    /// Crashed so that a real machine resets itself.
    TripleFault,
    /// Cannot go on; the sentence says why.
    Fault(String),
}

/// How a board tells about its guest.
pub(crate) type TellGuest = Arc<dyn Fn(GuestEvent) + Send + Sync>;

/// What the machine is told.
pub enum Order {
    /// A request over the control socket, and where its answer goes.
    Request(Request, SyncSender<Result<Answer, Refusal>>),
    /// Somebody wants to hear of events.
    Watch(Stream<Event>),
    /// Save the state into these files, and where the answer goes.
    Suspend {
        /// In which versions.
        set: StateSet,
        /// The state file.
        state: File,
        /// The memory file.
        memory: File,
        /// The answer.
        reply: SyncSender<Result<Answer, Refusal>>,
    },
    /// The memory of a machine that was brought back cannot be read: why.
    MemoryLost(String),
    /// End at once.
    Kill,
    /// Press the power button.
    PowerButton,
    /// The guest of board number `board` did something.
    Guest {
        /// Which board: an older one's word does not count any more.
        board: u64,
        /// What.
        event: GuestEvent,
    },
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Request(request, _) => write!(f, "Request({request:?})"),
            Self::Suspend { set, .. } => write!(f, "Suspend {{ set: {set:?} }}"),
            Self::MemoryLost(why) => write!(f, "MemoryLost({why})"),
            Self::Watch(_) => f.write_str("Watch"),
            Self::Kill => f.write_str("Kill"),
            Self::PowerButton => f.write_str("PowerButton"),
            Self::Guest { board, event } => write!(f, "Guest {{ board: {board}, event: {event:?} }}"),
        }
    }
}

/// A guest that crashes this often in a row, each time within [`SHORT_LIFE`], has a kernel that does not run here.
const MOST_CRASHES: u32 = 5;
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// How many may watch; a further one takes the place of the one who has watched longest.
const MOST_WATCHERS: usize = 32;
/// How long a watcher that does not read may hold the machine's orders up.
const WATCHER_PATIENCE: Duration = Duration::from_millis(100);

/// A machine.
pub struct Machine {
    parts: Parts,
    board: Option<Board>,
    number: u64,
    state: MachineState,
    first_run: Arc<OnceLock<Instant>>,
    resets: u64,
    crashes: u32,
    watchers: Vec<Stream<Event>>,
    orders: Receiver<Order>,
    sender: Sender<Order>,
    /// The memory of a machine that was brought back, until all of it is there.
    filling: Option<Filling>,
    /// A state that is true until the guest runs: the one that the machine comes from, or that was saved while it is paused.
    state_file: Option<StateFile>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Machine {{ name: {:?}, state: {:?} }}", self.parts.config.name, self.state)
    }
}

impl Machine {
    /// Builds the machine; no instruction runs before [`Machine::run`].
    pub fn build(parts: Parts, restore: Option<Restore>) -> Result<Self, BuildError> {
        let (sender, orders) = channel();
        let mut machine = Self {
            parts,
            board: None,
            number: 0,
            state: MachineState::Paused,
            first_run: Arc::default(),
            resets: 0,
            crashes: 0,
            watchers: vec![],
            orders,
            sender,
            filling: None,
            state_file: None,
        };
        let saved = restore.map(|restore| machine.take_state(restore)).transpose()?;
        machine.new_board(saved)?;
        Ok(machine)
    }

    /// Where orders go.
    pub fn orders(&self) -> Sender<Order> {
        self.sender.clone()
    }

    fn new_board(&mut self, saved: Option<Sections>) -> Result<(), BuildError> {
        self.number += 1;
        let (number, sender) = (self.number, self.sender.clone());
        let tell: TellGuest = Arc::new(move |event| {
            // Nobody listens any more only when the machine has ended.
            let _ = sender.send(Order::Guest { board: number, event });
        });
        self.board = Some(Board::build(&mut self.parts, tell, &self.first_run, saved)?);
        Ok(())
    }

    /// Runs the machine until it ends.
    pub fn run(mut self) -> ExitCode {
        if let Err(e) = self.use_state_up() {
            log::error!("{}", keelson_init_control::logging::chain(&e));
            return ExitCode::BadConfig;
        }
        self.state = MachineState::Running;
        if let Some(board) = &self.board {
            board.resume();
        }
        let code = loop {
            // The machine itself holds a sender, so receiving cannot fail.
            let Ok(order) = self.orders.recv() else { break ExitCode::Fault };
            if let Some(code) = self.carry_out(order) {
                break code;
            }
        };
        self.state = MachineState::Off;
        self.parts.console.detach();
        let lost = self.filling.as_ref().is_some_and(Filling::is_lost);
        if let Some(board) = self.board.take() {
            let stopped = if lost { board.abandon() } else { board.end() };
            if !stopped {
                log::warn!("a vCPU did not stop in time; it ends with the process");
            }
        }
        self.tell_watchers(&Event::State(MachineState::Off));
        code
    }

    fn carry_out(&mut self, order: Order) -> Option<ExitCode> {
        match order {
            Order::Request(request, reply) => {
                let answer = self.answer(&request);
                let fault = match &answer {
                    Err(Refusal::Failed(_)) if self.board.is_none() => Some(ExitCode::Fault),
                    _ => None,
                };
                // A client that went away in between has no use for the answer.
                let _ = reply.send(answer);
                return fault;
            }
            Order::Watch(stream) => self.watch(stream),
            Order::PowerButton => self.press(),
            Order::Suspend { set, state, memory, reply } => {
                // A client that went away in between has no use for the answer.
                let _ = reply.send(self.suspend(set, state, memory).map(|()| Answer::Done));
            }
            Order::MemoryLost(why) => return Some(self.fault(why)),
            Order::Kill if self.state_file.is_some() => {
                log::info!("ended by request, suspended");
                return Some(ExitCode::Suspended);
            }
            Order::Kill => {
                log::info!("killed by request");
                return Some(ExitCode::Killed);
            }
            Order::Guest { board, event } if board == self.number => return self.guest(event),
            Order::Guest { .. } => {}
        }
        None
    }

    fn press(&mut self) {
        log::info!("the power button is pressed");
        if let Some(board) = &self.board {
            board.press_power_button();
        }
    }

    fn answer(&mut self, request: &Request) -> Result<Answer, Refusal> {
        match request {
            Request::Status => return Ok(Answer::Status(self.status())),
            Request::PowerButton => self.press(),
            Request::Pause if self.state == MachineState::Running => self.pause()?,
            Request::Resume if self.state == MachineState::Paused => {
                self.use_state_up().map_err(|e| {
                    let why = keelson_init_control::logging::chain(&e);
                    Refusal::Failed(format!("the machine was suspended and cannot go on here: {why}"))
                })?;
                self.resume();
            }
            Request::Pause | Request::Resume => {}
            Request::Reset => {
                log::info!("reset by request");
                self.reset().map_err(Refusal::Failed)?;
            }
            // These are taken by the connection itself.
            Request::Kill | Request::Watch | Request::Suspend { .. } => {
                return Err(Refusal::Failed("this word is not for the machine".into()));
            }
        }
        Ok(Answer::Done)
    }

    fn pause(&mut self) -> Result<(), Refusal> {
        if !self.board.as_ref().is_some_and(Board::pause) {
            let why = "a vCPU did not stop within five seconds; the machine runs on";
            return Err(Refusal::Failed(why.into()));
        }
        self.change_state(MachineState::Paused);
        Ok(())
    }

    fn resume(&mut self) {
        if let Some(board) = &self.board {
            board.resume();
        }
        self.change_state(MachineState::Running);
    }

    fn guest(&mut self, event: GuestEvent) -> Option<ExitCode> {
        match event {
            GuestEvent::PowerOff => {
                log::info!("the guest switched itself off");
                self.tell_watchers(&Event::GuestPowerOff);
                return Some(ExitCode::GuestOff);
            }
            GuestEvent::Fault(why) => return Some(self.fault(why)),
            GuestEvent::Reset => {
                log::info!("the guest reset itself");
                self.crashes = 0;
            }
            GuestEvent::TripleFault => {
                let short = self.board.as_ref().is_some_and(|b| b.born.elapsed() < SHORT_LIFE);
                self.crashes = if short { self.crashes + 1 } else { 1 };
                if self.crashes >= MOST_CRASHES {
                    let times = self.crashes;
                    return Some(self.fault(format!(
                        "the guest crashed (triple fault) {times} times in a row, each time within a second of its start: its \
                         kernel does not run on this machine"
                    )));
                }
                log::warn!("the guest crashed (triple fault), so the machine resets as real ones do");
            }
        }
        match self.reset() {
            Ok(()) => None,
            Err(why) => Some(self.fault(why)),
        }
    }

    fn fault(&mut self, why: String) -> ExitCode {
        log::error!("{why}");
        self.tell_watchers(&Event::Fault(why));
        ExitCode::Fault
    }

    /// A new board around the same memory. A paused machine stays paused.
    fn reset(&mut self) -> Result<(), String> {
        self.parts.console.detach();
        if let Some(board) = self.board.take()
            && !board.end()
        {
            return Err("a vCPU did not stop within five seconds, so the machine cannot be reset".into());
        }
        self.new_board(None).map_err(|e| {
            format!("the machine could not be built anew: {}", keelson_init_control::logging::chain(&e))
        })?;
        self.resets += 1;
        if self.state == MachineState::Running
            && let Some(board) = &self.board
        {
            board.resume();
        }
        self.tell_watchers(&Event::Reset);
        Ok(())
    }

    fn status(&self) -> Status {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let first = self.first_run.get();
        Status {
            name: self.parts.config.name.clone(),
            uuid: self.parts.config.uuid,
            state: self.state,
            vcpus: self.parts.config.vcpus,
            memory_mib: self.parts.config.memory_mib,
            memory_touched_mib: self.parts.memory.touched() >> 20,
            uptime_ms: first.map_or(0, |at| micros(at.elapsed()) / 1000),
            start_us: first.map_or(0, |at| micros(at.saturating_duration_since(self.parts.executed))),
            resets: self.resets,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    fn change_state(&mut self, state: MachineState) {
        self.state = state;
        self.tell_watchers(&Event::State(state));
    }

    fn watch(&mut self, stream: Stream<Event>) {
        let _ = stream.set_timeout(Some(WATCHER_PATIENCE));
        if stream.send(&Event::State(self.state)).is_err() {
            return;
        }
        if self.watchers.len() >= MOST_WATCHERS {
            self.watchers.remove(0);
        }
        self.watchers.push(stream);
    }

    fn tell_watchers(&mut self, event: &Event) {
        self.watchers.retain(|stream| stream.send(event).is_ok());
    }
}
