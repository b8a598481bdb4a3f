//! The order of loading at boot: what the state partition needs, then the network, then virtual machines, then the rest, on a few
//! threads; and whatever hardware asks for later.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::loader::Loader;
use super::{coldplug, fixed, uevent};
use crate::clock;
use crate::sys::priority;

/// Modules load on at most so many threads: most of the time is unpacking and probing.
const THREADS_MAX: usize = 4;

/// When a driver is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Before the firmware's variables and the state partition can be mounted.
    FileSystems,
    /// The disks among which the state partition is looked for.
    Storage,
    /// Before the EFI system partition is read.
    Words,
    /// Before netd starts.
    Network,
    /// Before the first VM starts.
    Machines,
    /// When everything runs.
    Later,
}

#[derive(Debug)]
struct Work {
    /// The last stage that may load now.
    until: Stage,
    queue: VecDeque<(Stage, String)>,
    busy: Vec<Stage>,
    failed: Vec<(String, Errno)>,
    /// Counts block devices that were announced.
    block_events: u64,
    slow_storage: bool,
    /// The boot is over: what hardware asks for from now on is not in the daemons' way.
    up: bool,
}

impl Work {
    /// Whether something of this stage or an earlier one is left to load.
    fn has(&self, stage: Stage) -> bool {
        self.queue.iter().any(|(s, _)| *s <= stage) || self.busy.iter().any(|s| *s <= stage)
    }
}

/// The drivers of this host.
#[derive(Debug)]
pub(crate) struct Drivers {
    loader: Loader,
    work: Mutex<Work>,
    changed: Condvar,
}

impl Drivers {
    /// Looks at the hardware and begins to load.
    pub(crate) fn begin() -> Arc<Self> {
        // The socket first: what is announced while the tree is walked must not be lost.
        let socket = uevent::open();
        let work = Work {
            until: Stage::Network,
            queue: VecDeque::new(),
            busy: Vec::new(),
            failed: Vec::new(),
            block_events: 0,
            slow_storage: false,
            up: false,
        };
        let drivers =
            Arc::new(Self { loader: Loader::new(), work: Mutex::new(work), changed: Condvar::new() });
        if drivers.loader.tables.len() == 0 {
            log::warn!("there are no drivers for this kernel in /lib/modules; only what is built in works");
        }
        drivers.plan();
        let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, THREADS_MAX);
        for _ in 0..threads {
            let shared = Arc::clone(&drivers);
            let started = std::thread::Builder::new().name("drivers".into()).spawn(move || shared.serve());
            if let Err(e) = started {
                log::error!("no thread to load drivers in: {e}");
            }
        }
        match socket {
            Ok(socket) => {
                let shared = Arc::clone(&drivers);
                let _ = std::thread::Builder::new().name("uevents".into()).spawn(move || {
                    loop {
                        match uevent::next(&socket) {
                            Ok(Some(event)) => shared.announced(event),
                            Ok(None) | Err(Errno::EINTR) => {}
                            // Some were lost: look at everything again.
                            Err(Errno::ENOBUFS) => shared.plan(),
                            Err(e) => {
                                log::error!("hardware that comes later will not be noticed: {}", e.desc());
                                return;
                            }
                        }
                    }
                });
            }
            Err(e) => log::error!("hardware that comes later will not be noticed: {}", e.desc()),
        }
        drivers
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues what the fixed list and the hardware ask for.
    fn plan(&self) {
        let efi = Path::new("/sys/firmware/efi").exists();
        let fixed = fixed::read(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), efi);
        let wanted = coldplug::wanted(Path::new("/sys/devices"));
        let mut jobs: Vec<(Stage, String)> = Vec::new();
        let mut by_list =
            |stage, names: &[String]| jobs.extend(names.iter().map(|name| (stage, name.clone())));
        by_list(Stage::FileSystems, &fixed.file_systems);
        by_list(Stage::Storage, &fixed.storage);
        by_list(Stage::Words, &fixed.words);
        by_list(Stage::Network, &fixed.network);
        by_list(Stage::Machines, &fixed.machines);
        by_list(Stage::Later, &fixed.later);
        for modalias in &wanted {
            let stage = stage(modalias);
            jobs.extend(self.loader.tables.answering(modalias).into_iter().map(|module| (stage, module)));
        }
        jobs.sort_by_key(|(stage, _)| *stage);
        let mut seen = BTreeSet::new();
        jobs.retain(|(_, module)| seen.insert(module.clone()));
        let mut work = self.lock();
        work.slow_storage |= wanted.iter().any(|m| coldplug::is_slow_storage(m));
        work.queue.extend(jobs);
        drop(work);
        self.changed.notify_all();
    }

    fn announced(&self, event: uevent::Uevent) {
        let found = event
            .modalias
            .filter(|_| event.action == "add")
            .map(|m| (stage(&m), self.loader.tables.answering(&m)));
        let mut work = self.lock();
        if event.subsystem == "block" {
            work.block_events += 1;
        }
        if let Some((stage, modules)) = found {
            // In front: something waits for it, or nothing is queued any more.
            for module in modules {
                work.queue.push_front((stage, module));
            }
        }
        drop(work);
        self.changed.notify_all();
    }

    /// A loading thread's life.
    fn serve(&self) {
        loop {
            let mut work = self.lock();
            let (stage, module) = loop {
                let allowed = work.queue.iter().position(|(stage, _)| *stage <= work.until);
                match allowed.and_then(|at| work.queue.remove(at)) {
                    Some(job) => break job,
                    None => work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner),
                }
            };
            work.busy.push(stage);
            let hurry = stage < Stage::Machines || work.up;
            drop(work);
            priority::of_this_thread(if hurry { 0 } else { priority::LOWEST });
            let done = self.loader.load(&module);
            let mut work = self.lock();
            if let Some(at) = work.busy.iter().position(|s| *s == stage) {
                work.busy.swap_remove(at);
            }
            match done {
                Ok(()) => {}
                // The device is not this driver's after all, or the image does not carry it.
                Err(e @ (Errno::ENODEV | Errno::ENOENT)) => log::debug!("driver {module}: {}", e.desc()),
                Err(e) => work.failed.push((module, e)),
            }
            drop(work);
            self.changed.notify_all();
        }
    }

    /// Lets this stage, and those before it, load: what a host can be reached without must not delay that.
    pub(crate) fn allow(&self, stage: Stage) {
        self.lock().until = stage;
        self.changed.notify_all();
    }

    /// The boot is over.
    pub(crate) fn boot_is_over(&self) {
        self.lock().up = true;
    }

    /// Waits until nothing of this stage or an earlier one is left to load.
    pub(crate) fn wait(&self, stage: Stage) {
        let mut work = self.lock();
        while work.has(stage) {
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What could not be loaded since this was asked last.
    pub(crate) fn failures(&self) -> Vec<(String, Errno)> {
        std::mem::take(&mut self.lock().failed)
    }

    /// Whether there are controllers whose disks may still show up.
    pub(crate) fn may_bring_disks(&self) -> bool {
        self.lock().slow_storage
    }

    /// How many block devices were announced so far.
    pub(crate) fn block_events(&self) -> u64 {
        self.lock().block_events
    }

    /// Whether nothing of this stage or an earlier one is left to load.
    pub(crate) fn done(&self, stage: Stage) -> bool {
        !self.lock().has(stage)
    }

    /// Waits for what may bring a disk: a block device that was not counted in `seen`, or the last driver of one (unless `all_tried`:
    /// the caller has seen that they are loaded). Then until `deadline`. False when none came.
    pub(crate) fn wait_for_block(&self, seen: u64, all_tried: bool, deadline: Duration) -> bool {
        let mut work = self.lock();
        while work.block_events == seen {
            let loading = work.has(Stage::Storage);
            if !loading && !all_tried {
                return true;
            }
            if loading {
                work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let left = deadline.saturating_sub(clock::now());
            if left.is_zero() {
                return false;
            }
            work = self.changed.wait_timeout(work, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

fn stage(modalias: &str) -> Stage {
    if coldplug::is_storage(modalias) {
        Stage::Storage
    } else if coldplug::is_network(modalias) {
        Stage::Network
    } else {
        Stage::Later
    }
}
