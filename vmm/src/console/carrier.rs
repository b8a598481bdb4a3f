//! The thread that carries console output to its readers and their typing to the guest.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use super::{Console, LogFile};

/// How many bytes go to one reader at a time. A pipe that poll(2) calls writable takes 4096 bytes without blocking (PIPE_BUF).
const CHUNK: usize = 4096;
/// How many console connections there may be; further ones wait in the socket's backlog.
const MOST_CLIENTS: usize = 16;
/// The key that ends a `run` on a terminal: Ctrl-].
const QUIT_KEY: u8 = 0x1d;
/// For how long no connection is taken where descriptors or memory are short: others may free them, and nothing tells of that.
const SHORT: Duration = Duration::from_millis(250);
/// How long the last output may take to reach its readers when the machine ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What the carrier works for.
#[derive(Default)]
pub struct Ends {
    /// Where console clients connect.
    pub listener: Option<UnixListener>,
    /// The bounded log.
    pub log: Option<LogFile>,
    /// Where output goes in `run`.
    pub stdout: Option<File>,
    /// Where input comes from in `run`.
    pub stdin: Option<File>,
    /// The input is a terminal: the quit key is looked for.
    pub quit_key: bool,
    /// The signals that the process takes.
    pub signals: Option<SignalFd>,
}

/// What the carrier tells the machine.
pub(super) type Tell = Box<dyn Fn(Heard) + Send>;

/// What the carrier heard that is not for the guest's serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The quit key.
    Quit,
    /// A signal.
    Signal(Signal),
}

struct Client {
    stream: UnixStream,
    position: u64,
    /// Read, but not taken by the console yet.
    typed: Vec<u8>,
    /// It will type no more, but may still read.
    silent: bool,
    /// It has closed; what it typed before that is still to be read.
    closed: bool,
    gone: bool,
}

/// The carrier's own state.
pub struct Carrier {
    console: Arc<Console>,
    ends: Ends,
    clients: Vec<Client>,
    logged: u64,
    shown: u64,
    typed: Vec<u8>,
    /// Descriptors or memory were short at the last connection: the listener rests for one wait.
    short: bool,
    /// That was logged, and no connection has been taken since.
    short_told: bool,
    tell: Tell,
}

/// Ends the carrier.
#[derive(Debug)]
pub struct StopCarrier {
    stop: UnixStream,
    thread: JoinHandle<()>,
}

impl StopCarrier {
    /// Waits until the last output has reached its readers (half a second at most), then ends the thread.
    pub fn finish(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

impl std::fmt::Debug for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Carrier")
    }
}

impl Carrier {
    fn new(console: Arc<Console>, ends: Ends, tell: Tell) -> Self {
        Self {
            console,
            ends,
            clients: vec![],
            logged: 0,
            shown: 0,
            typed: vec![],
            short: false,
            short_told: false,
            tell,
        }
    }

    /// Starts the thread.
    pub fn start(console: Arc<Console>, ends: Ends, tell: Tell) -> io::Result<StopCarrier> {
        if let Some(listener) = &ends.listener {
            listener.set_nonblocking(true)?;
        }
        let (stop, stopped) = UnixStream::pair()?;
        let mut carrier = Self::new(console, ends, tell);
        let thread =
            std::thread::Builder::new().name("console".into()).stack_size(128 << 10).spawn(move || {
                carrier.run(&stopped);
                carrier.last_words();
            })?;
        Ok(StopCarrier { stop, thread })
    }

    fn run(&mut self, stopped: &UnixStream) {
        loop {
            let rest = if self.short {
                PollTimeout::try_from(SHORT).unwrap_or(PollTimeout::ZERO)
            } else {
                PollTimeout::NONE
            };
            let ready = self.wait(Some(stopped.as_fd()), rest);
            self.short = false;
            let ready = match ready {
                Ok(ready) => ready,
                Err(e) => {
                    log::error!("the console's carrier ends, since poll(2) failed: {e}");
                    return;
                }
            };
            for (source, flags) in ready {
                if source == Source::Stop {
                    return;
                }
                self.serve(source, flags);
            }
            self.write_log();
            if !self.typed.is_empty() || self.clients.iter().any(|c| !c.typed.is_empty()) {
                self.offer_typed();
            }
            self.console.feed();
            for client in self.clients.iter_mut().filter(|c| c.closed && c.typed.is_empty()) {
                while !client.gone && client.typed.is_empty() && self.console.input_room() > 0 {
                    client.read(&self.console);
                }
            }
            self.clients.retain(|c| !c.gone);
            // Who has closed waits only for the guest to read on; that must not keep others out.
            if self.clients.len() >= MOST_CLIENTS
                && let Some(at) = self.clients.iter().position(|c| c.closed)
            {
                self.clients.remove(at);
            }
        }
    }

    /// Waits until something can be done. A reader is asked about only when there is output for it, a typist only when the guest
    /// has room for input.
    fn wait(
        &self,
        stop: Option<BorrowedFd<'_>>,
        timeout: PollTimeout,
    ) -> io::Result<Vec<(Source, PollFlags)>> {
        let printed = self.console.printed();
        let room = self.console.input_room() > 0;
        let ending = stop.is_none();
        let mut fds = Vec::with_capacity(6 + self.clients.len());
        let mut add = |source, fd, flags| fds.push((source, PollFd::new(fd, flags)));
        if let Some(stop) = stop {
            add(Source::Stop, stop, PollFlags::POLLIN);
            add(Source::Bell, self.console.bell.as_fd(), PollFlags::POLLIN);
            if let Some(signals) = &self.ends.signals {
                add(Source::Signals, signals.as_fd(), PollFlags::POLLIN);
            }
            let takes = self.clients.len() < MOST_CLIENTS && !self.short;
            if let Some(listener) = self.ends.listener.as_ref().filter(|_| takes) {
                add(Source::Listener, listener.as_fd(), PollFlags::POLLIN);
            }
            if let Some(stdin) = self.ends.stdin.as_ref().filter(|_| room && self.typed.is_empty()) {
                add(Source::Stdin, stdin.as_fd(), PollFlags::POLLIN);
            }
        }
        if let Some(stdout) = self.ends.stdout.as_ref().filter(|_| self.shown < printed) {
            add(Source::Stdout, stdout.as_fd(), PollFlags::POLLOUT);
        }
        for (n, client) in self.clients.iter().enumerate() {
            if client.closed {
                continue;
            }
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, room && client.typed.is_empty() && !client.silent && !ending);
            flags.set(PollFlags::POLLOUT, client.position < printed);
            add(Source::Client(n), client.stream.as_fd(), flags);
        }
        let (sources, mut polled): (Vec<Source>, Vec<PollFd<'_>>) = fds.into_iter().unzip();
        match poll(&mut polled, timeout) {
            Err(Errno::EINTR) => return Ok(vec![]),
            other => other?,
        };
        let ready = sources.into_iter().zip(polled.iter().map(|p| p.revents().unwrap_or(PollFlags::empty())));
        Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn serve(&mut self, source: Source, flags: PollFlags) {
        match source {
            Source::Stop => {}
            Source::Bell => self.console.heed(),
            Source::Signals => self.take_signals(),
            Source::Listener => self.accept(),
            Source::Stdin => self.read_stdin(),
            Source::Stdout => self.show(flags),
            Source::Client(n) => {
                if let Some(client) = self.clients.get_mut(n) {
                    client.serve(&self.console, flags);
                }
            }
        }
    }

    fn take_signals(&mut self) {
        while let Some(Ok(Some(info))) = self.ends.signals.as_ref().map(SignalFd::read_signal) {
            if let Ok(signal) = i32::try_from(info.ssi_signo)
                .map_err(|_| ())
                .and_then(|n| Signal::try_from(n).map_err(|_| ()))
            {
                (self.tell)(Heard::Signal(signal));
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.ends.listener else { return };
        match listener.accept().and_then(|(stream, _)| stream.set_nonblocking(true).map(|()| stream)) {
            Ok(stream) => {
                self.short_told = false;
                // Position 0: the reader begins with everything that the ring still holds.
                self.clients.push(Client {
                    stream,
                    position: 0,
                    typed: vec![],
                    silent: false,
                    closed: false,
                    gone: false,
                });
            }
            Err(e) => self.not_accepted(&e),
        }
    }

    /// A connection was not accepted. That ends the listening only where the listener itself is of no use any more.
    fn not_accepted(&mut self, error: &io::Error) {
        match error.raw_os_error().map(Errno::from_raw) {
            // There was none, or the peer gave up before it was accepted.
            Some(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => {}
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                self.short = true;
                if !std::mem::replace(&mut self.short_told, true) {
                    log::warn!("the console takes no connections for now: {error}");
                }
            }
            _ => {
                log::error!("the console takes no further connections: {error}");
                self.ends.listener = None;
            }
        }
    }

    fn read_stdin(&mut self) {
        let Some(stdin) = &mut self.ends.stdin else { return };
        let mut bytes = [0; 256];
        match stdin.read(&mut bytes) {
            Ok(0) => self.ends.stdin = None,
            Ok(n) => {
                let bytes = bytes.get(..n).unwrap_or_default();
                if self.ends.quit_key && bytes.contains(&QUIT_KEY) {
                    (self.tell)(Heard::Quit);
                } else {
                    self.typed.extend_from_slice(bytes);
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.ends.stdin = None,
        }
    }

    fn show(&mut self, flags: PollFlags) {
        let (bytes, next) = self.console.output(self.shown, CHUNK);
        let Some(stdout) = &mut self.ends.stdout else { return };
        match stdout.write(&bytes) {
            _ if flags.contains(PollFlags::POLLERR) => self.ends.stdout = None,
            Ok(n) => self.shown = next - u64::try_from(bytes.len() - n.min(bytes.len())).unwrap_or_default(),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.ends.stdout = None,
        }
    }

    fn write_log(&mut self) {
        let Some(log) = &mut self.ends.log else { return };
        loop {
            let (bytes, next) = self.console.output(self.logged, super::RING);
            if bytes.is_empty() {
                return;
            }
            log.append(&bytes);
            self.logged = next;
        }
    }

    /// Offers the guest what was typed. What it has no room for is kept, and no more is read from that typist.
    fn offer_typed(&mut self) {
        for typed in std::iter::once(&mut self.typed).chain(self.clients.iter_mut().map(|c| &mut c.typed)) {
            let taken = self.console.type_in(typed);
            typed.drain(..taken);
        }
    }

    /// The machine has ended: whatever it printed last still reaches those who read.
    fn last_words(&mut self) {
        let end = Instant::now() + LAST_WORDS;
        loop {
            self.write_log();
            self.clients.retain(|c| !c.gone && !c.closed);
            let printed = self.console.printed();
            let waiting = self.ends.stdout.is_some() && self.shown < printed
                || self.clients.iter().any(|c| c.position < printed);
            let left = end.saturating_duration_since(Instant::now());
            if !waiting || left.is_zero() {
                return;
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let Ok(ready) = self.wait(None, timeout) else { return };
            for (source, flags) in ready {
                self.serve(source, flags);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Stop,
    Bell,
    Signals,
    Listener,
    Stdin,
    Stdout,
    Client(usize),
}

impl Client {
    fn serve(&mut self, console: &Console, flags: PollFlags) {
        if flags.contains(PollFlags::POLLIN) {
            self.read(console);
        }
        if flags.contains(PollFlags::POLLOUT) {
            let (bytes, next) = console.output(self.position, CHUNK);
            match self.stream.write(&bytes) {
                Ok(n) => {
                    self.position = next - u64::try_from(bytes.len() - n.min(bytes.len())).unwrap_or_default()
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // It reads no more, but what it typed before it closed still counts.
                Err(_) => self.closed = true,
            }
        }
        if flags.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL) {
            self.closed = true;
        }
    }

    /// Reads what the guest has room for.
    fn read(&mut self, console: &Console) {
        if console.input_room() == 0 {
            return;
        }
        let mut bytes = [0; 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => (self.silent, self.gone) = (true, self.closed),
            Ok(n) => {
                let bytes = bytes.get(..n).unwrap_or_default();
                let taken = console.type_in(bytes);
                self.typed.extend_from_slice(bytes.get(taken..).unwrap_or_default());
            }
            Err(e) => self.check(&e),
        }
    }

    fn check(&mut self, error: &io::Error) {
        if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
            self.gone = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::RING;
    use std::sync::mpsc;

    fn started() -> (Arc<Console>, StopCarrier, std::path::PathBuf, tempfile::TempDir, mpsc::Receiver<Heard>)
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let console = Arc::new(Console::new().unwrap());
        let (tx, rx) = mpsc::channel();
        let ends = Ends { listener: Some(listener), ..Ends::default() };
        let stop = Carrier::start(Arc::clone(&console), ends, Box::new(move |heard| tx.send(heard).unwrap()))
            .unwrap();
        (console, stop, path, dir, rx)
    }

    #[test]
    fn a_connection_that_could_not_be_accepted_does_not_end_the_listening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let ends = Ends { listener: Some(UnixListener::bind(&path).unwrap()), ..Ends::default() };
        let mut carrier = Carrier::new(Arc::new(Console::new().unwrap()), ends, Box::new(|_| {}));
        let (stop, _keep) = UnixStream::pair().unwrap();
        let listens = |carrier: &Carrier| {
            let ready = carrier.wait(Some(stop.as_fd()), PollTimeout::ZERO).unwrap();
            ready.iter().any(|(source, _)| *source == Source::Listener)
        };
        let _client = UnixStream::connect(&path).unwrap();
        carrier.not_accepted(&Errno::ECONNABORTED.into());
        assert!(listens(&carrier), "another one waits");
        for short in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM] {
            carrier.not_accepted(&short.into());
            assert!(!listens(&carrier), "asked again at once, it would spin");
            carrier.short = false;
            assert!(listens(&carrier));
        }
        carrier.accept();
        assert_eq!(carrier.clients.len(), 1);
        carrier.not_accepted(&Errno::EBADF.into());
        assert!(carrier.ends.listener.is_none());
    }

    #[test]
    fn a_new_reader_gets_the_recent_output_then_what_follows() {
        let (console, stop, path, _dir, _) = started();
        console.print(b"before ");
        let mut client = UnixStream::connect(&path).unwrap();
        let mut text = [0; 7];
        client.read_exact(&mut text).unwrap();
        console.print(b"after..");
        let mut more = [0; 7];
        client.read_exact(&mut more).unwrap();
        assert_eq!((&text, &more), (b"before ", b"after.."));
        console.print(b"the last words");
        stop.finish();
        let mut rest = String::new();
        client.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "the last words");
    }

    #[test]
    fn a_reader_that_does_not_read_delays_nobody() {
        let (console, stop, path, _dir, _) = started();
        let _lazy = UnixStream::connect(&path).unwrap();
        let mut keen = UnixStream::connect(&path).unwrap();
        let chunk = vec![b'x'; RING];
        let mut got = 0;
        // Far more than a socket buffers, so the lazy one is full; printing still returns and the keen one still reads.
        for _ in 0..40 {
            console.print(&chunk);
            let mut part = vec![0; 1000];
            keen.read_exact(&mut part).unwrap();
            got += part.len();
        }
        assert_eq!(got, 40_000);
        stop.finish();
    }

    #[test]
    fn what_a_client_types_waits_for_the_guest_in_order() {
        let (console, stop, path, _dir, _) = started();
        let mut client = UnixStream::connect(&path).unwrap();
        let text: Vec<u8> = (0..20_000u32).map(|n| (n / 7) as u8).collect();
        let sender = {
            let text = text.clone();
            std::thread::spawn(move || client.write_all(&text).map(|()| client))
        };
        let mut got = vec![];
        while got.len() < text.len() {
            got.extend(console.take_input(64));
            std::thread::yield_now();
        }
        assert_eq!(got, text);
        drop(sender.join().unwrap());
        stop.finish();
    }

    #[test]
    fn what_was_typed_before_a_client_closed_still_counts() {
        let (console, stop, path, _dir, _) = started();
        // Output that it does not read: its connection breaks with bytes under way both ways.
        console.print(&[b'x'; RING]);
        for _ in 0..50 {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(b"poweroff\n").unwrap();
            drop(client);
            let mut got = vec![];
            while got.len() < 9 {
                got.extend(console.take_input(64));
                std::thread::yield_now();
            }
            assert_eq!(got, b"poweroff\n");
        }
        stop.finish();
    }
}
