//! How long a daemon that ended waits before it is started again.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(10);
/// A daemon that ran this long is well: its next end counts as the first.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Doubles from 100 ms to 10 s, and starts over after a minute of running.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    ends: u32,
}

impl Backoff {
    /// The wait after a process that ran for `ran`.
    pub(crate) fn after(&mut self, ran: Duration) -> Duration {
        if ran >= WELL_AFTER {
            self.ends = 0;
        }
        let wait = FIRST.checked_mul(1 << self.ends.min(10)).unwrap_or(LONGEST).min(LONGEST);
        self.ends = self.ends.saturating_add(1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_doubles_to_its_limit_and_starts_over() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.after(Duration::from_secs(1)).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.after(Duration::from_secs(60)), FIRST);
    }

    proptest! {
        #[test]
        fn it_stays_between_its_limits(runs in prop::collection::vec(0u64..100_000, 1..200)) {
            let mut backoff = Backoff::default();
            for ran in runs {
                let wait = backoff.after(Duration::from_millis(ran));
                prop_assert!((FIRST..=LONGEST).contains(&wait));
            }
        }
    }
}
