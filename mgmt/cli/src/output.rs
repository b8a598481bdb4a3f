//! Writing results: JSON for programs, columns for people.

use std::io::{ErrorKind, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::cli::Format;
use crate::failure::Failure;

/// Where and how results go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// One thing: its JSON, or these names and values.
    pub(crate) fn one<T: Serialize>(
        self,
        thing: &T,
        lines: impl FnOnce() -> Vec<(&'static str, String)>,
    ) -> Result<(), Failure> {
        if self.is_json() {
            return self.json(thing);
        }
        let mut text = String::new();
        for (name, value) in lines() {
            let mut parts = clean(&value).split('\n').map(str::to_owned).collect::<Vec<_>>().into_iter();
            text.push_str(&format!(
                "{:<22} {}\n",
                if name.is_empty() { String::new() } else { format!("{name}:") },
                parts.next().unwrap_or_default()
            ));
            for part in parts {
                text.push_str(&format!("{:<22} {part}\n", ""));
            }
        }
        bytes(text.as_bytes())
    }

    /// A list: its JSON, or a table with these columns.
    pub(crate) fn list<T: Serialize>(
        self,
        things: &[T],
        columns: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), Failure> {
        if self.is_json() {
            return self.json(&things);
        }
        bytes(format!("{}\n", table(columns, things.iter().map(row))).as_bytes())
    }

    fn json<T: Serialize>(self, thing: &T) -> Result<(), Failure> {
        let mut text = serde_json::to_vec_pretty(thing)
            .map_err(|e| Failure::local("the result cannot be written as JSON", e.into()))?;
        text.push(b'\n');
        bytes(&text)
    }
}

/// A table without lines.
pub(crate) fn table(columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns.iter().map(|c| c.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Without control characters: a name from elsewhere must not steer this terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Writes to standard output.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Failure::OutputClosed),
        Err(e) => Err(Failure::local("standard output cannot be written", e)),
    }
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut scaled = bytes as f64;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{bytes} B") } else { format!("{scaled:.1} {name}") }
}

/// A span of time for people.
pub(crate) fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, m) => format!("{m} min {} s", seconds % 60),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}
