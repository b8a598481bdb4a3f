//! One line on the terminal that says how far something is; nothing where standard error is no terminal.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::output::{clean, size};
use crate::terminal;

/// How often the line changes at most.
const STEP: Duration = Duration::from_millis(100);
/// A line longer than this would wrap on a narrow terminal.
const WIDTH: usize = 78;

#[derive(Debug)]
pub(crate) struct Progress {
    shown: bool,
    began: Instant,
    last: Option<Instant>,
}

impl Progress {
    pub(crate) fn start() -> Self {
        Self { shown: terminal::shows_progress(), began: Instant::now(), last: None }
    }

    /// Shows a text in place of the last one.
    pub(crate) fn say(&mut self, text: &str) {
        if self.shown {
            let line: String = clean(text).replace('\n', " ").chars().take(WIDTH).collect();
            eprint!("\r\x1b[K{line}");
            let _ = std::io::stderr().flush();
        }
    }

    /// Shows how many bytes are done, with a bar where the whole is known.
    pub(crate) fn bytes(&mut self, what: &str, done: u64, whole: Option<u64>) {
        let ended = Some(done) == whole;
        if !self.shown || (!ended && self.last.is_some_and(|l| l.elapsed() < STEP)) {
            return;
        }
        self.last = Some(Instant::now());
        self.say(&line(what, done, whole, self.began.elapsed()));
    }

    /// Takes the line away.
    pub(crate) fn end(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
            let _ = std::io::stderr().flush();
        }
    }
}

fn line(what: &str, done: u64, whole: Option<u64>, took: Duration) -> String {
    let speed = (done as f64 / took.as_secs_f64().max(0.001)) as u64;
    match whole {
        Some(whole) if whole > 0 => {
            let percent = u128::from(done) * 100 / u128::from(whole);
            let filled = usize::try_from(percent / 5).unwrap_or(20).min(20);
            format!(
                "{what} [{}{}] {percent}% of {}, {}/s",
                "#".repeat(filled),
                ".".repeat(20 - filled),
                size(whole),
                size(speed)
            )
        }
        _ => format!("{what} {}, {}/s", size(done), size(speed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_tells_how_much_of_what_and_how_fast() {
        let text = line("x.iso", 512 << 20, Some(1 << 30), Duration::from_secs(2));
        assert_eq!(text, "x.iso [##########..........] 50% of 1.0 GiB, 256.0 MiB/s");
        assert_eq!(line("x", 2048, None, Duration::from_secs(1)), "x 2.0 KiB, 2.0 KiB/s");
        assert!(line("x", u64::MAX, Some(1), Duration::ZERO).contains("####################"));
    }
}
