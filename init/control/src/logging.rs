//! How a unit logs: lines `<P>target: text` on standard error, P a syslog priority, which init reads into the log ring.
//! On a terminal the priority is left out.

use std::io::{IsTerminal, Write};

/// Starts logging for this process at `level`; a second call changes only the level.
pub fn init(level: log::LevelFilter) {
    static LOGGER: Stderr = Stderr;
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

/// The syslog priority of a level.
pub fn priority(level: log::Level) -> u8 {
    match level {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        log::Level::Debug | log::Level::Trace => 7,
    }
}

/// An error with its whole chain of causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let next = e.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = e.source();
    }
    text
}

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = String::new();
        if !std::io::stderr().is_terminal() {
            line.push_str(&format!("<{}>", priority(record.level())));
        }
        // One write a line, and one line a record: a newline within it would look like a record of its own.
        let text = record.args().to_string().replace('\n', " ");
        line.push_str(&format!("{}: {text}\n", record.target().trim_start_matches("keelson_")));
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
