//! A console as a person sees it: bytes from a serial line or a terminal go through a vt100 parser; tests wait for what the screen
//! shows and type keys.

use std::io::{Read, Write};
use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Keys as a terminal sends them.
pub mod keys {
    /// F2 as xterm sends it.
    pub const F2: &str = "\x1bOQ";
    /// F11 as xterm sends it.
    pub const F11: &str = "\x1b[23~";
    /// F12 as xterm sends it.
    pub const F12: &str = "\x1b[24~";
    /// The Enter key.
    pub const ENTER: &str = "\r";
    /// The Escape key.
    pub const ESC: &str = "\x1b";
    /// Cursor down.
    pub const DOWN: &str = "\x1b[B";
    /// Cursor up.
    pub const UP: &str = "\x1b[A";
    /// The tabulator.
    pub const TAB: &str = "\t";
    /// The space bar.
    pub const SPACE: &str = " ";
    /// Backspace.
    pub const BACKSPACE: &str = "\x7f";
}

const LINES: NonZero<u16> = NonZero::<u16>::MIN.saturating_add(23);
const COLUMNS: NonZero<u16> = NonZero::<u16>::MIN.saturating_add(79);

struct Seen {
    screen: vt100::Parser,
    transcript: Vec<u8>,
    closed: bool,
}

/// A console's screen and keyboard.
pub struct Console {
    seen: Arc<(Mutex<Seen>, Condvar)>,
    keyboard: Keyboard,
    taps: Taps,
}

/// A console's keyboard.
#[derive(Clone)]
pub struct Keyboard(Arc<Mutex<Box<dyn Write + Send>>>);

impl Keyboard {
    /// Types these bytes.
    pub fn send(&self, keys: &[u8]) -> std::io::Result<()> {
        let mut keyboard = lock(&self.0);
        keyboard.write_all(keys)?;
        keyboard.flush()
    }
}

/// Whoever else gets every byte that a console prints; one that fails is dropped.
#[derive(Clone, Default)]
pub struct Taps(Arc<Mutex<Vec<Box<dyn Write + Send>>>>);

impl Taps {
    /// Adds one.
    pub fn add(&self, tap: Box<dyn Write + Send>) {
        lock(&self.0).push(tap);
    }

    fn write(&self, bytes: &[u8]) {
        lock(&self.0).retain_mut(|tap| tap.write_all(bytes).and_then(|()| tap.flush()).is_ok());
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Console")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Console {
    /// A console of 24 lines of 80 columns whose output is read from `output` on a thread of its own; `echo` also gets every byte.
    pub fn new(
        mut output: impl Read + Send + 'static,
        keyboard: impl Write + Send + 'static,
        echo: Option<Box<dyn Write + Send>>,
    ) -> Self {
        let screen = vt100::Parser::new(LINES, COLUMNS, 0);
        let seen =
            Arc::new((Mutex::new(Seen { screen, transcript: Vec::new(), closed: false }), Condvar::new()));
        let shared = Arc::clone(&seen);
        let taps = Taps::default();
        echo.into_iter().for_each(|echo| taps.add(echo));
        let all = taps.clone();
        std::thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            loop {
                let n = match output.read(&mut buffer) {
                    Ok(n) => n,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(_) => 0,
                };
                let bytes = buffer.get(..n).unwrap_or_default();
                all.write(bytes);
                let mut now = lock(&shared.0);
                now.screen.process(bytes);
                now.transcript.extend_from_slice(bytes);
                now.closed = n == 0;
                shared.1.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        Self { seen, keyboard: Keyboard(Arc::new(Mutex::new(Box::new(keyboard)))), taps }
    }

    /// What the screen shows now, a line per row.
    pub fn screen(&self) -> String {
        lock(&self.seen.0).screen.screen().contents()
    }

    /// Everything printed so far.
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&lock(&self.seen.0).transcript).into_owned()
    }

    /// Waits until `holds` is true of the screen and the transcript; returns what it made of them.
    pub fn wait<T>(
        &self,
        what: &str,
        within: Duration,
        mut holds: impl FnMut(&str, &str) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + within;
        let mut now = lock(&self.seen.0);
        loop {
            let screen = now.screen.screen().contents();
            if let Some(found) = holds(&screen, &String::from_utf8_lossy(&now.transcript)) {
                return Ok(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if now.closed || left.is_zero() {
                let why = if now.closed { "the console was closed" } else { "the time is up" };
                bail!("waited for {what}: {why}. The screen:\n{screen}\n--");
            }
            now = self.seen.1.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the screen shows `text`.
    pub fn wait_screen(&self, text: &str, within: Duration) -> Result<()> {
        self.wait(&format!("`{text}` on the screen"), within, |screen, _| screen.contains(text).then_some(()))
    }

    /// Waits until `text` was printed, now or before.
    pub fn wait_printed(&self, text: &str, within: Duration) -> Result<()> {
        self.wait(&format!("`{text}`"), within, |_, transcript| transcript.contains(text).then_some(()))
    }

    /// Types.
    pub fn type_keys(&self, keys: &str) -> Result<()> {
        Ok(self.keyboard.send(keys.as_bytes())?)
    }

    /// Its keyboard, for another thread.
    pub fn keyboard(&self) -> Keyboard {
        self.keyboard.clone()
    }

    /// Where others can listen in.
    pub fn taps(&self) -> Taps {
        self.taps.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_read_and_its_end_is_an_error() {
        let output: &[u8] = b"\x1b[2J\x1b[5;10Hhello\x1b[1;1H";
        let console = Console::new(output, std::io::sink(), None);
        console.wait_screen("hello", Duration::from_secs(5)).unwrap();
        let missing = console.wait_screen("farewell", Duration::from_secs(60)).unwrap_err().to_string();
        assert!(missing.contains("closed") && missing.contains("hello"), "{missing}");
    }
}
