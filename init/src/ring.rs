//! The log ring: the last lines of all sources, bounded in bytes.

use std::collections::VecDeque;

use keelson_init_control::LogLine;

/// The longest text of a line, in bytes.
pub(crate) const LINE_MAX: usize = 2048;
/// What one line costs beside its text, in bytes (an estimate that keeps empty lines from being free).
const LINE_COST: usize = 96;
/// The text that one answer carries at most; JSON escapes can make it six times as long, and a frame holds 4 MiB.
const ANSWER_MAX: usize = 512 << 10;

/// Lines with numbers from 1 without gaps; the oldest make room.
#[derive(Debug)]
pub(crate) struct Ring {
    lines: VecDeque<LogLine>,
    bytes: usize,
    limit: usize,
    next: u64,
}

impl Ring {
    /// An empty ring that holds about `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { lines: VecDeque::new(), bytes: 0, limit, next: 1 }
    }

    /// Appends a line; what is longer than [`LINE_MAX`] is cut, and control characters become spaces.
    pub(crate) fn push(&mut self, time_ms: u64, source: &str, priority: u8, text: &str) {
        let mut text: String =
            text.chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect();
        let mut end = text.len().min(LINE_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        self.bytes += cost(&text);
        self.lines.push_back(LogLine { seq: self.next, time_ms, source: source.into(), priority, text });
        self.next += 1;
        while self.bytes > self.limit {
            let Some(old) = self.lines.pop_front() else { break };
            self.bytes = self.bytes.saturating_sub(cost(&old.text));
        }
    }

    /// Lines from number `since` on, oldest first, at most `max` and at most what fits one answer.
    pub(crate) fn read(&self, since: u64, max: u32, source: Option<&str>) -> Vec<LogLine> {
        let first = self.lines.front().map_or(self.next, |line| line.seq);
        let skip = usize::try_from(since.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut room = ANSWER_MAX;
        let wanted = self.lines.iter().skip(skip).filter(|line| source.is_none_or(|s| s == line.source));
        wanted
            .take(usize::try_from(max).unwrap_or(usize::MAX))
            .take_while(|line| {
                let fits = room >= cost(&line.text);
                room = room.saturating_sub(cost(&line.text));
                fits
            })
            .cloned()
            .collect()
    }
}

fn cost(text: &str) -> usize {
    text.len() + LINE_COST
}

/// Splits a line's `<P>` prefix off; without one the line has priority `default`. Facilities (P above 7) are dropped.
pub(crate) fn priority(line: &str, default: u8) -> (u8, &str) {
    let parsed = line.strip_prefix('<').and_then(|rest| rest.split_once('>')).and_then(|(number, text)| {
        let number = number.parse::<u16>().ok().filter(|_| number.len() <= 3)?;
        Some((u8::try_from(number & 7).unwrap_or(default), text))
    });
    parsed.unwrap_or((default, line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn old_lines_make_room_and_numbers_go_on() {
        let mut ring = Ring::new(10 * (LINE_COST + 10));
        for n in 0..100 {
            ring.push(n, if n % 2 == 0 { "netd" } else { "hostd" }, 6, "0123456789");
        }
        let all = ring.read(0, 1000, None);
        assert_eq!((all.len(), all[0].seq, all[9].seq), (10, 91, 100));
        assert_eq!(ring.read(95, 2, None).iter().map(|l| l.seq).collect::<Vec<_>>(), [95, 96]);
        assert_eq!(ring.read(0, 1000, Some("netd")).len(), 5);
        assert!(ring.read(101, 1000, None).is_empty());
    }

    #[test]
    fn prefixes_are_read() {
        assert_eq!(priority("<3>netd: no link", 6), (3, "netd: no link"));
        assert_eq!(priority("<30>x", 6), (6, "x"));
        assert_eq!(priority("<x>y", 6), (6, "<x>y"));
        assert_eq!(priority("plain", 4), (4, "plain"));
    }

    proptest! {
        #[test]
        fn any_line_is_taken_and_the_ring_stays_bounded(lines in prop::collection::vec(".{0,3000}", 0..40), since: u64, max: u32) {
            let mut ring = Ring::new(20_000);
            for line in &lines {
                let (p, text) = priority(line, 6);
                prop_assert!(p <= 7);
                ring.push(0, "netd", p, text);
            }
            prop_assert!(ring.bytes <= 20_000);
            prop_assert!(ring.read(since, max, None).len() <= lines.len());
            for line in ring.read(0, u32::MAX, None) {
                prop_assert!(line.text.len() <= LINE_MAX);
            }
        }
    }
}
