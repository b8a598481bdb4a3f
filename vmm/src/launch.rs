//! From descriptors to a machine that runs until it ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keelson_vmm_control::{ConfigError, Cpu, ExitCode, MachineConfig};
use nix::sched::{sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::boot::Payload;
use crate::console::{Carrier, Console, Ends, Heard, LogFile};
use crate::kvm::{Host, KvmError};
use crate::machine::{BuildError, Machine, Order, Parts, Restore};
use crate::memory::{Memory, MemoryError};
use crate::terminal::RawTerminal;

/// Everything that a machine is started with. Nothing is opened from here on.
#[derive(Debug)]
pub struct Setup {
    /// The machine's description.
    pub config: MachineConfig,
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// Guest memory; without it the monitor makes its own.
    pub memory: Option<File>,
    /// The state of a suspended machine, to be brought back rather than booted.
    pub restore: Option<Restore>,
    /// The kernel.
    pub kernel: File,
    /// The initramfs.
    pub initramfs: Option<File>,
    /// One for each disk of the description.
    pub disks: Vec<File>,
    /// One for each network adapter of the description.
    pub taps: Vec<OwnedFd>,
    /// A listening socket for the control words.
    pub control: Option<OwnedFd>,
    /// A listening socket for the console.
    pub console: Option<UnixListener>,
    /// The bounded log of the console.
    pub console_log: Option<File>,
    /// The serial port is on standard input and output, and SIGINT ends the machine.
    pub stdio: Stdio,
}

/// Whether the serial port is on standard input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// It is.
    Console,
    /// They are left alone.
    Unused,
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The description.
    #[error("the machine's configuration is wrong")]
    Config(#[from] ConfigError),
    /// The host.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The machine itself.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A system call of the monitor's own.
    #[error("could not {what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// When this process was executed: now, less the processor time that it has used, for until here it never waited.
pub fn executed_at() -> Instant {
    let now = Instant::now();
    let used = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default();
    now.checked_sub(used).unwrap_or(now)
}

/// Builds the machine and runs it until it ends.
pub fn run(setup: Setup, executed: Instant) -> Result<ExitCode, LaunchError> {
    let doing = |what| move |source: io::Error| LaunchError::System { what, source };
    crate::sys::one_arena();
    setup.config.validate()?;
    let signals = take_signals(setup.stdio).map_err(doing("take signals"))?;
    crate::sys::install_kick().map_err(doing("install the signal that stops vCPUs"))?;
    check_affinity(&setup.config.cpu)?;
    let host = Host::new(setup.kvm, setup.config.vcpus, &setup.config.cpu)?;
    let memory = Memory::new(setup.config.memory_mib, setup.memory)?;
    let console = Arc::new(Console::new().map_err(doing("make the console"))?);
    let payload = Payload {
        kernel: setup.kernel,
        initramfs: setup.initramfs,
        cmdline: setup.config.boot.cmdline.clone(),
    };
    let parts = Parts {
        config: setup.config,
        host,
        memory,
        payload,
        disks: setup.disks,
        taps: setup.taps,
        console: Arc::clone(&console),
        executed,
    };
    let machine = Machine::build(parts, setup.restore)?;

    let orders = machine.orders();
    if let Some(socket) = setup.control {
        crate::control::start(socket, orders.clone()).map_err(doing("start the control socket's thread"))?;
    }
    let terminal = match setup.stdio {
        Stdio::Console => RawTerminal::enter().map_err(doing("make the terminal raw"))?,
        Stdio::Unused => None,
    };
    let mut ends = Ends {
        listener: setup.console,
        signals: Some(signals),
        quit_key: terminal.is_some(),
        ..Ends::default()
    };
    if let Some(file) = setup.console_log {
        ends.log = Some(LogFile::new(file).map_err(doing("look at the console log"))?);
    }
    if setup.stdio == Stdio::Console {
        let file = |fd: io::Result<OwnedFd>| {
            fd.map(File::from).map(Some).map_err(doing("duplicate standard input or output"))
        };
        ends.stdin = file(io::stdin().as_fd().try_clone_to_owned())?;
        ends.stdout = file(io::stdout().as_fd().try_clone_to_owned())?;
    }
    let tell = move |heard| {
        let order = match heard {
            Heard::Signal(Signal::SIGTERM) => Order::PowerButton,
            Heard::Signal(_) | Heard::Quit => Order::Kill,
        };
        // Fails only when the machine has ended, which is what most of these orders wanted.
        let _ = orders.send(order);
    };
    let carrier =
        Carrier::start(console, ends, Box::new(tell)).map_err(doing("start the console's thread"))?;
    let code = machine.run();
    carrier.finish();
    drop(terminal);
    Ok(code)
}

/// Finds out whether the host has the processors that vCPUs are pinned to, by moving this thread there and back: the vCPUs' own
/// threads come later, when nobody hears a refusal any more.
fn check_affinity(cpu: &Cpu) -> Result<(), ConfigError> {
    let here = Pid::from_raw(0);
    let Ok(before) = sched_getaffinity(here) else { return Ok(()) };
    for (n, list) in cpu.affinity.iter().enumerate() {
        for processor in list {
            let set = crate::machine::cpu_set(&[*processor]);
            if let Err(e) = set.and_then(|set| sched_setaffinity(here, &set)) {
                let problem = format!("host processor {processor} cannot be used: {e}");
                return Err(ConfigError { field: format!("cpu.affinity[{n}]"), problem });
            }
        }
    }
    if !cpu.affinity.is_empty()
        && let Err(e) = sched_setaffinity(here, &before)
    {
        log::warn!("the monitor's own threads stay on the last vCPU's processor: {e}");
    }
    Ok(())
}

/// Signals come by descriptor from here on, in every thread that starts after this.
fn take_signals(stdio: Stdio) -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    if stdio == Stdio::Console {
        set.add(Signal::SIGINT);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}
