//! The thread that serves a device's queues: it sleeps in epoll and runs the device's chip when one of its sources has something.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::queue::Turn;

/// What wakes a chip.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// The descriptor, which the chip owns.
    pub fd: RawFd,
    /// Wake once for each thing that arrives, not as long as something is there.
    pub edge: bool,
}

/// A device's logic, which serves its sources.
pub trait Chip: Send + 'static {
    /// Its sources, at most 63.
    fn sources(&self) -> Vec<Source>;
    /// Serves the source of that index, a bounded part of its work. Called once for each source at the start, rung or not.
    fn run(&mut self, source: usize) -> Turn;
}

const STOP: u64 = u64::MAX;

/// A running thread and the chip in it.
#[derive(Debug)]
pub struct Worker<C> {
    stop: EventFd,
    thread: JoinHandle<C>,
}

impl<C: Chip> Worker<C> {
    /// Starts the thread. On an error the chip is gone: its device needs a reset.
    pub fn start(name: &str, mut chip: C) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        epoll.ctl(ControlOperation::Add, stop.as_raw_fd(), EpollEvent::new(EventSet::IN, STOP))?;
        let sources = chip.sources();
        for (index, source) in sources.iter().enumerate() {
            let events = if source.edge { EventSet::IN | EventSet::EDGE_TRIGGERED } else { EventSet::IN };
            epoll.ctl(ControlOperation::Add, source.fd, EpollEvent::new(events, index as u64))?;
        }
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            run(&epoll, sources.len(), &mut chip);
            chip
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread after the turn it is in and returns the chip.
    pub fn stop(self) -> C {
        if let Err(e) = self.stop.write(1) {
            log::error!("a device's worker cannot be told to stop: {e}");
        }
        match self.thread.join() {
            Ok(chip) => chip,
            // Only where panics unwind (tests): the worker's panic goes on here.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn run(epoll: &Epoll, sources: usize, chip: &mut impl Chip) {
    let mut due = (1u64 << sources.min(63)) - 1;
    let mut events = [EpollEvent::default(); 8];
    loop {
        let timeout = if due == 0 { -1 } else { 0 };
        let count = match epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                log::error!("a device's worker ends: it cannot wait for events: {e}");
                return;
            }
        };
        for event in events.iter().take(count) {
            match event.data() {
                STOP => return,
                source => due |= 1 << (source & 63),
            }
        }
        let now = std::mem::take(&mut due);
        for source in (0..sources).filter(|s| now >> s & 1 == 1) {
            if chip.run(source) == Turn::More {
                due |= 1 << source;
            }
        }
    }
}
