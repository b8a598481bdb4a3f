//! The host's log, as init keeps it.

use keelson_api::{LogLine, Problem};

use crate::problems::argument;
use crate::services::Services;

/// How many lines are given when a client does not say.
pub(crate) const DEFAULT_LINES: u64 = 500;
/// The most lines of one answer. A line has at most 2 KiB, and init's messages end at 4 MiB.
pub(crate) const MAX_LINES: u64 = 1000;

impl Services {
    /// Log lines from number `since` on, oldest first.
    pub fn logs(&self, since: u64, max: u64, source: Option<String>) -> Result<Vec<LogLine>, Problem> {
        let max = u32::try_from(max).ok().filter(|max| (1..=MAX_LINES).contains(&u64::from(*max)));
        let max = max.ok_or_else(|| {
            argument("max", "that many lines cannot be asked for at once", &format!("give 1 to {MAX_LINES}"))
        })?;
        let lines = self.units.ask("the log could not be read", |c| c.logs(since, max, source))?;
        Ok(lines.into_iter().map(shown).collect())
    }
}

fn shown(line: keelson_init_control::LogLine) -> LogLine {
    let level = match line.priority {
        0..=3 => "error",
        4 => "warning",
        5..=6 => "info",
        _ => "debug",
    };
    let time = i64::try_from(line.time_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    LogLine { seq: line.seq, time, source: line.source, level: level.into(), text: line.text }
}
