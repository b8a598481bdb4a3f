//! Where lines come from and go to: units' pipes, the kernel's log and init's own words, into the log ring; init's own also to
//! the console until dcui has it, and its warnings to the kernel's log, which survives a crash on machines with a pstore.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use keelson_init_control::LogLine;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::clock;
use crate::lines::Lines;
use crate::ring::{self, Ring};

/// What the ring holds, in bytes.
const RING_BYTES: usize = 4 << 20;

struct Journal {
    ring: Mutex<Ring>,
    open_consoles: fn() -> Vec<File>,
    consoles: Mutex<Vec<File>>,
    kmsg: Option<File>,
    arrivals: Mutex<Vec<(String, OwnedFd)>>,
    wake: OnceLock<EventFd>,
    shown: AtomicBool,
}

static JOURNAL: OnceLock<Journal> = OnceLock::new();

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn journal() -> &'static Journal {
    JOURNAL.get_or_init(|| Journal {
        ring: Mutex::new(Ring::new(RING_BYTES)),
        open_consoles: Vec::new,
        consoles: Mutex::new(Vec::new()),
        kmsg: None,
        arrivals: Mutex::new(Vec::new()),
        wake: OnceLock::new(),
        shown: AtomicBool::new(true),
    })
}

/// Begins: what `open_consoles` opens gets init's own lines, `kmsg` its warnings.
pub(crate) fn begin(open_consoles: fn() -> Vec<File>, kmsg: Option<File>) {
    let _ = JOURNAL.set(Journal {
        ring: Mutex::new(Ring::new(RING_BYTES)),
        open_consoles,
        consoles: Mutex::new(open_consoles()),
        kmsg,
        arrivals: Mutex::new(Vec::new()),
        wake: OnceLock::new(),
        shown: AtomicBool::new(true),
    });
    static OWN: Own = Own;
    let _ = log::set_logger(&OWN);
    log::set_max_level(log::LevelFilter::Info);
}

/// Whether init's lines go to the console; not while dcui draws there.
pub(crate) fn show_on_console(show: bool) {
    if show {
        // The end of dcui, whose controlling terminal it was, hung up every descriptor of it.
        *locked(&journal().consoles) = (journal().open_consoles)();
    }
    journal().shown.store(show, Ordering::Relaxed);
}

/// Starts the thread that reads pipes and, when given, the kernel's log.
pub(crate) fn collect(kernel: bool) -> std::io::Result<()> {
    let _ = journal().wake.set(EventFd::new()?);
    let kernel = kernel.then(open_kernel_log).transpose();
    let kernel = kernel.unwrap_or_else(|e| {
        log::warn!("the kernel's log cannot be read: {e}");
        None
    });
    std::thread::Builder::new().name("journal".into()).spawn(move || {
        loop {
            let e = read_all(&kernel);
            log::error!("the journal stumbled and goes on: {e}");
        }
    })?;
    Ok(())
}

fn open_kernel_log() -> std::io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")
}

/// Lines that come through `pipe` belong to `source` from now on, until its end.
pub(crate) fn attach(source: String, pipe: OwnedFd) {
    locked(&journal().arrivals).push((source, pipe));
    if let Some(wake) = journal().wake.get() {
        let _ = wake.write(1);
    }
}

/// Lines of the ring.
pub(crate) fn read(since: u64, max: u32, source: Option<&str>) -> Vec<LogLine> {
    locked(&journal().ring).read(since, max, source)
}

/// One line of init's own.
fn say(priority: u8, text: &str) {
    let journal = journal();
    locked(&journal.ring).push(clock::wall_ms(), "init", priority, text);
    if journal.shown.load(Ordering::Relaxed) {
        for console in locked(&journal.consoles).iter_mut().filter(|console| writable(console)) {
            // One write, so that lines of the kernel do not fall into it.
            let _ = console.write_all(format!("keelson: {text}\r\n").as_bytes());
        }
    }
    if priority <= 4
        && let Some(kmsg) = &journal.kmsg
    {
        // As debug: the kernel would print it on the console a second time.
        let mut kmsg = kmsg;
        let _ = writeln!(kmsg, "<15>keelson: {text}");
    }
}

/// Whether a write would not wait: a console under flow control, or a pipe that nobody reads, must not stop PID 1.
fn writable(file: &File) -> bool {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n == 1)
}

struct Own;

impl log::Log for Own {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = record.args().to_string().replace('\n', " ");
            say(keelson_init_control::logging::priority(record.level()), &text);
        }
    }

    fn flush(&self) {}
}

struct Pipe {
    source: String,
    file: File,
    lines: Lines,
}

fn read_all(kernel: &Option<File>) -> std::io::Error {
    let Some(wake) = journal().wake.get() else { return std::io::ErrorKind::NotFound.into() };
    let mut pipes: Vec<Pipe> = Vec::new();
    loop {
        for (source, fd) in std::mem::take(&mut *locked(&journal().arrivals)) {
            pipes.push(Pipe { source, file: File::from(fd), lines: Lines::default() });
        }
        let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(pipes.iter().map(|p| PollFd::new(p.file.as_fd(), PollFlags::POLLIN)));
        fds.extend(kernel.iter().map(|k| PollFd::new(k.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return e.into(),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let mut ready = ready.into_iter();
        if ready.next() == Some(true) {
            let _ = wake.read();
        }
        pipes.retain_mut(|pipe| if ready.next() == Some(true) { pipe.read() } else { true });
        if let (Some(kernel), Some(true)) = (kernel, ready.next()) {
            read_kernel(kernel);
        }
    }
}

impl Pipe {
    /// Reads once; `false` at the end.
    fn read(&mut self) -> bool {
        let mut buffer = [0u8; 16 << 10];
        let source = &self.source;
        let keep = |line: &str| {
            let (priority, text) = ring::priority(line, 6);
            locked(&journal().ring).push(clock::wall_ms(), source, priority, text);
        };
        match self.file.read(&mut buffer) {
            Ok(0) => {
                self.lines.end(keep);
                false
            }
            Ok(n) => {
                self.lines.take(buffer.get(..n).unwrap_or_default(), keep);
                true
            }
            Err(e) => matches!(e.kind(), std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock),
        }
    }
}

/// Reads all records that are there. Those that were overwritten before they were read (EPIPE) are skipped by the kernel.
fn read_kernel(mut kernel: &File) {
    let mut buffer = [0u8; 8192];
    loop {
        let n = match kernel.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => n,
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPIPE | libc::EINTR)) => continue,
            Err(_) => return,
        };
        let text = String::from_utf8_lossy(buffer.get(..n).unwrap_or_default());
        if let Some(record) = crate::kmsg::parse(&text) {
            let ago = clock::now().checked_sub(record.at).unwrap_or(Duration::ZERO);
            let time = clock::wall_ms().saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(0));
            locked(&journal().ring).push(time, "kernel", record.priority, record.text);
        }
    }
}
