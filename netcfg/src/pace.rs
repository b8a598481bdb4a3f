//! When the kernel's events are looked at: soon after the first, together, and not more often than a guest should be able to make netd work.

use std::time::Duration;

use tokio::time::Instant;

/// A guest makes events as it likes (a tap's features follow what its driver negotiates), so observations keep this distance.
const DISTANCE: Duration = Duration::from_millis(250);

/// When to look next, and when that was done last.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    due: Option<Instant>,
    looked: Option<Instant>,
}

impl Pace {
    /// When to look; `None` while nothing has happened.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Something happened at `now`. It is looked at after `pause`, together with what happens until then.
    pub(crate) fn happened(&mut self, now: Instant, pause: Duration) {
        let next = now + pause;
        self.by(self.looked.map_or(next, |looked| next.max(looked + DISTANCE)));
    }

    /// It is looked at `at`, or before.
    pub(crate) fn by(&mut self, at: Instant) {
        self.due = self.due.or(Some(at));
    }

    /// Everything that had happened was looked at; that was done at `now`.
    pub(crate) fn looked(&mut self, now: Instant) {
        (self.due, self.looked) = (None, Some(now));
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
    fn events_without_end_are_looked_at_four_times_a_second_and_the_last_is_seen() {
        assert_eq!(looks((0..=1000).step_by(5)), [20, 270, 520, 770, 1020]);
        assert_eq!(looks([0, 30]), [20, 270]);
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
