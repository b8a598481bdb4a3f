//! When the kernel's events are looked at: soon after the first, together, and not more often than a guest should be able to make netd work.

use std::time::Duration;

use tokio::time::Instant;

/// A guest makes events as it likes (a tap's features follow what its driver negotiates), so observations keep this distance in the long run.
const DISTANCE: Duration = Duration::from_millis(250);
/// What an honest burst takes at once (links that come up, changes of our own) before the distance counts.
const AT_ONCE: u32 = 8;

/// When to look next, and what earlier looks have used up.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    due: Option<Instant>,
    /// When all looks so far would be over if they had kept the distance.
    spent_until: Option<Instant>,
}

impl Pace {
    /// When to look; `None` while nothing has happened.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Something happened at `now`. It is looked at after `pause`, together with what happens until then.
    pub(crate) fn happened(&mut self, now: Instant, pause: Duration) {
        let next = now + pause;
        let allowed = self.spent_until.and_then(|until| until.checked_sub(DISTANCE * (AT_ONCE - 1)));
        self.by(allowed.map_or(next, |allowed| next.max(allowed)));
    }

    /// It is looked at `at`, or before.
    pub(crate) fn by(&mut self, at: Instant) {
        self.due = self.due.or(Some(at));
    }

    /// Everything that had happened was looked at; that was done at `now`.
    pub(crate) fn looked(&mut self, now: Instant) {
        let from = self.spent_until.map_or(now, |until| until.max(now));
        (self.due, self.spent_until) = (None, Some(from + DISTANCE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: Duration = Duration::from_millis(20);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// When it is looked, in milliseconds, as events come at these times.
    fn looks(events: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut looks = Vec::new();
        let mut look_until = |pace: &mut Pace, end: Option<Instant>| {
            while let Some(due) = pace.due().filter(|due| end.is_none_or(|end| *due <= end)) {
                looks.push(u64::try_from((due - start).as_millis()).unwrap());
                pace.looked(due);
            }
        };
        for at in events {
            let now = start + ms(at);
            look_until(&mut pace, Some(now));
            pace.happened(now, BURST);
        }
        look_until(&mut pace, None);
        looks
    }

    #[test]
    fn the_first_event_is_looked_at_soon_and_a_burst_once() {
        assert_eq!(looks([100, 101, 119]), [120]);
        assert_eq!(looks([100, 2000]), [120, 2020]);
    }

    #[test]
    fn events_without_end_are_looked_at_four_times_a_second_after_a_burst_and_the_last_is_seen() {
        let burst = (1..=8).map(|n| n * 20);
        assert_eq!(looks((0..=1000).step_by(5)), burst.chain([270, 520, 770, 1020]).collect::<Vec<_>>());
        assert_eq!(looks([0, 30]), [20, 50]);
    }

    #[test]
    fn what_is_due_is_not_put_off() {
        let now = Instant::now();
        let mut pace = Pace::default();
        pace.by(now + ms(5));
        pace.happened(now, BURST);
        pace.by(now + ms(1));
        assert_eq!(pace.due(), Some(now + ms(5)));
    }
}
