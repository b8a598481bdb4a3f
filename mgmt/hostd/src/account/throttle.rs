//! How wrong credentials are slowed: each failure makes its sender's next attempts wait longer, and many failures from
//! anywhere make all attempts wait a little.
//!
//! An attempt waits before its password is looked at, so that neither a quick hang-up nor many attempts at once are faster. Attempts
//! from one sender take their turns. Nobody is locked out: the wait ends, and the local socket counts apart from the network.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The first wait; it doubles with each failure.
const FIRST: Duration = Duration::from_millis(250);
/// The longest wait of one attempt after the attempt before it.
const LONGEST: Duration = Duration::from_secs(8);
/// The longest wait of an answer to a request with no token or a wrong one: nobody guesses 256 bits.
const LONGEST_REFUSAL: Duration = Duration::from_secs(2);
/// An attempt that would wait longer for its turn is refused at once.
const PATIENCE: Duration = Duration::from_secs(30);
/// After this long without a failure a sender is forgiven.
const FORGIVEN: Duration = Duration::from_secs(15 * 60);
/// How many senders are remembered; the one unseen for longest is forgotten first.
const SENDERS: usize = 4096;
/// The wait of everyone for each failure that is fresh anywhere, and its bound.
const GLOBAL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
/// A failure stays fresh for this long.
const FRESH: Duration = Duration::from_secs(60);

/// Who sends: a network peer, or (as `None`) the local socket.
pub(crate) type Sender = Option<IpAddr>;

/// Counts failures.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    senders: HashMap<Sender, Record>,
    global: f64,
    global_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    failures: u32,
    under_way: u32,
    /// Requests with no token or a wrong one: counted apart, so that a program with an old token does not slow a person's login.
    refusals: u32,
    /// When the next attempt's turn is.
    turn: Instant,
    seen: Instant,
}

/// Too many attempts are waiting; come back after so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany(pub(crate) Duration);

/// The wait after so many failures.
fn penalty(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => FIRST.saturating_mul(1 << (n - 1).min(16)).min(LONGEST),
    }
}

impl Throttle {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a turn: how long to wait before the password may be looked at. It must be followed by [`Throttle::ended`].
    pub(crate) fn begin(&self, sender: Sender, now: Instant) -> Result<Duration, TooMany> {
        let mut state = self.state();
        let global = state.global(now);
        let record = state.record(sender, now);
        let turn = record.turn.max(now) + penalty(record.failures.saturating_add(record.under_way));
        let wait = turn.saturating_duration_since(now);
        if wait > PATIENCE {
            return Err(TooMany(wait));
        }
        record.turn = turn;
        record.under_way += 1;
        record.seen = now;
        Ok(wait + global)
    }

    /// Says how an attempt ended; `None` when it was given up.
    pub(crate) fn ended(&self, sender: Sender, right: Option<bool>, now: Instant) {
        let mut state = self.state();
        if right == Some(false) {
            state.global = state.fresh(now) + 1.0;
            state.global_at = Some(now);
        }
        let record = state.record(sender, now);
        record.under_way = record.under_way.saturating_sub(1);
        match right {
            Some(true) => {
                record.failures = 0;
                record.refusals = 0;
                record.turn = now;
            }
            Some(false) => record.failures = record.failures.saturating_add(1),
            None => {}
        }
    }

    /// Counts a request with no token or a wrong one and says how long its answer shall wait.
    pub(crate) fn refused(&self, sender: Sender, now: Instant) -> Duration {
        let mut state = self.state();
        let record = state.record(sender, now);
        record.refusals = record.refusals.saturating_add(1);
        record.seen = now;
        penalty(record.refusals).min(LONGEST_REFUSAL)
    }
}

impl State {
    fn fresh(&self, now: Instant) -> f64 {
        let age = self.global_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.global * (1.0 - (age.as_secs_f64() / FRESH.as_secs_f64()).min(1.0))
    }

    fn global(&self, now: Instant) -> Duration {
        GLOBAL.0.mul_f64(self.fresh(now).clamp(0.0, 1e6)).min(GLOBAL.1)
    }

    fn record(&mut self, sender: Sender, now: Instant) -> &mut Record {
        let forgiven = |r: &Record| r.under_way == 0 && now.saturating_duration_since(r.seen) >= FORGIVEN;
        if self.senders.get(&sender).is_some_and(forgiven) {
            self.senders.remove(&sender);
        }
        if self.senders.len() >= SENDERS && !self.senders.contains_key(&sender) {
            self.senders.retain(|_, r| !forgiven(r));
            let oldest = self
                .senders
                .iter()
                .filter(|(_, r)| r.under_way == 0)
                .min_by_key(|(_, r)| r.seen)
                .map(|(s, _)| *s);
            if let Some(oldest) = oldest {
                self.senders.remove(&oldest);
            }
        }
        self.senders.entry(sender).or_insert(Record {
            failures: 0,
            under_way: 0,
            refusals: 0,
            turn: now,
            seen: now,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u32) -> Sender {
        Some(IpAddr::from(n.to_be_bytes()))
    }

    #[test]
    fn each_failure_doubles_the_wait_and_success_ends_it() {
        let (throttle, mut now) = (Throttle::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..8 {
            let wait = throttle.begin(peer(1), now).unwrap();
            waits.push(wait.as_millis() / 250);
            now += wait;
            throttle.ended(peer(1), Some(false), now);
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 32]);
        // Another sender waits only the little that everyone does.
        assert!(throttle.begin(peer(2), now).unwrap() <= Duration::from_millis(160));
        now += throttle.begin(peer(1), now).unwrap();
        throttle.ended(peer(1), Some(true), now);
        assert!(throttle.begin(peer(1), now).unwrap() <= Duration::from_millis(160));
    }

    #[test]
    fn attempts_at_once_take_turns_and_too_many_are_refused() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        let waits: Vec<_> = (0..6).map(|_| throttle.begin(peer(1), now).unwrap().as_millis()).collect();
        assert_eq!(waits, [0, 250, 750, 1750, 3750, 7750]);
        while throttle.begin(peer(1), now).is_ok() {}
        assert!(matches!(throttle.begin(peer(1), now), Err(TooMany(wait)) if wait > PATIENCE));
        assert_eq!(throttle.begin(None, now), Ok(Duration::ZERO), "the local socket counts apart");
    }

    #[test]
    fn failures_from_everywhere_slow_everyone_a_little_for_a_while() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..1000 {
            throttle.begin(peer(n), now).unwrap();
            throttle.ended(peer(n), Some(false), now);
        }
        assert_eq!(throttle.begin(peer(5000), now), Ok(GLOBAL.1));
        assert_eq!(throttle.begin(peer(5001), now + FRESH), Ok(Duration::ZERO));
    }

    #[test]
    fn a_flood_of_senders_is_bounded_and_time_forgives() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..10_000 {
            throttle.refused(peer(n), now);
        }
        assert!(throttle.state().senders.len() <= SENDERS);
        assert_eq!(throttle.refused(peer(9_999), now), FIRST * 2);
        assert_eq!(throttle.refused(peer(9_999), now + FORGIVEN), FIRST);
    }
}
