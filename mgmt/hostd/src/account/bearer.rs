//! Bearer tokens: sessions, which live in memory and end when they are not used, and issued tokens, which are kept. Of both only
//! the SHA-256 is kept: a token has 256 random bits, so no slow hash is needed, and looking one up by it leaks nothing of use.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::random;

/// A session ends after this long without a request.
pub(crate) const IDLE: Duration = Duration::from_secs(30 * 60);
/// How many sessions there can be; the one unused for longest makes room.
const SESSIONS: usize = 128;

/// What a token is looked up by: its SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey([u8; 32]);

/// The SHA-256 of a token.
pub(crate) fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// A new token. The start tells a person (and a secret scanner) what it is.
pub(crate) fn new_token(start: &str) -> io::Result<String> {
    Ok(format!("{start}{}", random::hex::<32>()?))
}

/// All sessions, with when each was used last.
#[derive(Debug, Default)]
pub(crate) struct Sessions(HashMap<SessionKey, Instant>);

impl Sessions {
    /// Opens one and returns its token.
    pub(crate) fn open(&mut self, now: Instant) -> io::Result<String> {
        let token = new_token("keelson-session-")?;
        self.0.retain(|_, used| now.saturating_duration_since(*used) < IDLE);
        if self.0.len() >= SESSIONS
            && let Some(oldest) = self.0.iter().min_by_key(|(_, used)| **used).map(|(key, _)| *key)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(SessionKey(digest(&token)), now);
        Ok(token)
    }

    /// Uses a session: its key if it is open.
    pub(crate) fn touch(&mut self, token: &str, now: Instant) -> Option<SessionKey> {
        let key = SessionKey(digest(token));
        match self.0.get_mut(&key) {
            Some(used) if now.saturating_duration_since(*used) < IDLE => {
                *used = now;
                Some(key)
            }
            Some(_) => {
                self.0.remove(&key);
                None
            }
            None => None,
        }
    }

    /// Ends one.
    pub(crate) fn end(&mut self, key: SessionKey) {
        self.0.remove(&key);
    }

    /// Ends all but one.
    pub(crate) fn end_others(&mut self, kept: Option<SessionKey>) {
        self.0.retain(|key, _| Some(*key) == kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_when_it_is_not_used() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let token = sessions.open(now).unwrap();
        let almost = now + IDLE - Duration::from_secs(1);
        assert!(sessions.touch(&token, almost).is_some());
        assert!(
            sessions.touch(&token, almost + IDLE - Duration::from_secs(1)).is_some(),
            "use keeps it open"
        );
        assert!(sessions.touch(&token, almost + IDLE * 2).is_none());
        assert!(sessions.touch("keelson-session-", now).is_none());
    }

    #[test]
    fn there_are_never_more_sessions_than_the_bound() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let first = sessions.open(now).unwrap();
        let later = now + Duration::from_secs(1);
        let tokens: Vec<_> = (0..SESSIONS).map(|_| sessions.open(later).unwrap()).collect();
        assert!(sessions.touch(&first, later).is_none(), "the one unused for longest made room");
        let kept = sessions.touch(&tokens[5], later);
        assert!(kept.is_some());
        sessions.end_others(kept);
        assert_eq!(tokens.iter().filter(|t| sessions.touch(t, later).is_some()).count(), 1);
    }
}
