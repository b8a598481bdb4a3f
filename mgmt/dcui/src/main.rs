//! The console of a Keelson host (DCUI) on one terminal: `dcui [TTY]`.
//!
//! Everything that decides is pure: bytes become keys ([`keys`]), keys and news change the state ([`app`]), the state is drawn into
//! a buffer ([`draw`]), buffers become bytes ([`paint`]). This file joins them to a terminal, to the daemons and to time.

#![warn(unreachable_pub)]

mod address;
mod app;
mod changes;
mod draw;
mod facts;
mod form;
mod jobs;
mod keys;
mod menu;
mod paint;
#[cfg(test)]
mod tests;
mod tty;
mod watch;
mod worker;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use keelson_init_control::logging;
use nix::sys::signal::{SigSet, Signal};
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use app::{App, Effect};
use facts::Fact;
use jobs::{Done, Failure, Job};
use keys::{Decoder, ESCAPE_PAUSE};
use tty::Line;
use watch::{Bell, Sockets};

/// The whole screen is painted anew this often: the kernel may have written over it, or somebody may have come to a serial line.
const REPAINT: Duration = Duration::from_secs(30);
/// A key paints the whole screen anew if that was longer ago than this. Not each key: at 115200 baud it takes a third of a second.
const STALE: Duration = Duration::from_secs(3);

/// What wakes the console up.
enum Message {
    Bytes(Vec<u8>),
    HungUp,
    Fact(Fact),
    Done(u64, Result<Done, Failure>),
    Resized,
    Terminate,
}

fn main() -> ExitCode {
    logging::init(log::LevelFilter::Info);
    let mut arguments = std::env::args_os().skip(1);
    let path = arguments.next().map(PathBuf::from);
    // Elsewhere than on a host, the directory of the daemons' sockets.
    let run = arguments.next().map_or_else(|| PathBuf::from("/run/keelson"), PathBuf::from);
    if arguments.next().is_some()
        || path.as_deref().is_some_and(|p| p.as_os_str().as_encoded_bytes().starts_with(b"-"))
    {
        eprintln!(
            "usage: dcui [TTY [SOCKET-DIRECTORY]]\nThe console of a Keelson host on a terminal; on standard input's when none is named."
        );
        return ExitCode::from(2);
    }
    match run_console(path.as_deref(), &run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let line = path.map_or_else(|| "standard input".into(), |p| p.display().to_string());
            log::error!("the console on {line} ends: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run_console(path: Option<&Path>, run: &Path) -> std::io::Result<()> {
    let (to, messages) = channel();
    // Before the first thread, so that all of them leave these signals to the one that waits for them.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGWINCH] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let line = match path {
        Some(path) => Line::open(path)?,
        None => Line::standard_input()?,
    };
    watch_signals(signals, to.clone())?;
    read_keys(line.reader()?, to.clone())?;
    let sockets = Sockets::within(run);
    let bell = watch::start(&sockets, &to)?;
    let jobs = worker::start(&sockets.hostd, to, bell.clone())?;
    Console {
        line,
        app: App::default(),
        shown: None,
        painted: Instant::now(),
        started: Instant::now(),
        jobs,
        bell,
    }
    .run(&messages)
}

fn watch_signals(signals: SigSet, to: Sender<Message>) -> std::io::Result<()> {
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            let message = if signal == Signal::SIGWINCH { Message::Resized } else { Message::Terminate };
            if to.send(message).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}

fn read_keys(mut line: impl Read + Send + 'static, to: Sender<Message>) -> std::io::Result<()> {
    let read = move || {
        let mut bytes = [0; 256];
        loop {
            let message = match line.read(&mut bytes) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Ok(n) if n > 0 => Message::Bytes(bytes.get(..n).unwrap_or_default().to_vec()),
                _ => Message::HungUp,
            };
            let ended = matches!(message, Message::HungUp);
            if to.send(message).is_err() || ended {
                return;
            }
        }
    };
    thread::Builder::new().name("keys".into()).spawn(read).map(drop)
}

struct Console {
    line: Line,
    app: App,
    /// What the terminal shows, with its cursor; `None` when it has to be painted anew.
    shown: Option<(Buffer, Option<Position>)>,
    painted: Instant,
    started: Instant,
    jobs: Sender<(u64, Job)>,
    bell: Bell,
}

impl Console {
    fn run(mut self, messages: &Receiver<Message>) -> std::io::Result<()> {
        let mut decoder = Decoder::default();
        let mut last_byte = Instant::now();
        loop {
            self.show()?;
            let next = if decoder.waits() {
                ESCAPE_PAUSE.saturating_sub(last_byte.elapsed())
            } else {
                self.app.next_tick()
            };
            let first = messages.recv_timeout(next);
            let mut keys = Vec::new();
            if decoder.waits() && last_byte.elapsed() >= ESCAPE_PAUSE {
                decoder.pause(&mut keys);
            }
            // Whatever has come by now is taken in before the screen is drawn once.
            let waiting = match first {
                Ok(message) => std::iter::once(message).chain(messages.try_iter()).collect(),
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let mut effects = self.app.tick(self.started.elapsed());
            for message in waiting {
                match message {
                    Message::Bytes(bytes) => {
                        last_byte = Instant::now();
                        bytes.iter().for_each(|b| decoder.feed(*b, &mut keys));
                        if self.painted.elapsed() > STALE {
                            self.shown = None;
                        }
                    }
                    Message::Fact(fact) => self.app.learn(fact),
                    Message::Done(number, result) => self.app.done(number, result),
                    Message::Resized => self.shown = None,
                    Message::HungUp => return Ok(()),
                    Message::Terminate => {
                        let mut out = Vec::new();
                        paint::leave(&mut out);
                        return self.line.write(&out);
                    }
                }
            }
            for key in keys {
                effects.extend(self.app.key(key));
            }
            for effect in effects {
                match effect {
                    Effect::Repaint => self.shown = None,
                    Effect::Do(number, job) => {
                        if self.jobs.send((number, job)).is_err() {
                            self.app.done(
                                number,
                                Err(Failure::Other("The console's worker has ended; it begins anew.".into())),
                            );
                        }
                        self.bell.ring();
                    }
                }
            }
            if self.painted.elapsed() >= REPAINT {
                self.shown = None;
            }
        }
    }

    fn show(&mut self) -> std::io::Result<()> {
        let (columns, rows) = self.line.size();
        let mut next = Buffer::empty(Rect::new(0, 0, columns, rows));
        let cursor = draw::draw(&self.app, &mut next);
        let next = (next, cursor);
        match &self.shown {
            Some(shown) if *shown == next => return Ok(()),
            Some(_) => {}
            None => self.painted = Instant::now(),
        }
        let mut out = Vec::new();
        paint::paint(self.shown.as_ref().map(|(buffer, _)| buffer), &next.0, cursor, &mut out);
        self.shown = Some(next);
        self.line.write(&out)
    }
}
