//! Passwords: hashed with argon2id, compared without telling what was wrong, a few at a time.

use std::sync::{Condvar, Mutex, PoisonError};

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use keelson_api::{MAX_PASSWORD, MIN_PASSWORD};

/// Memory of one hash in KiB, passes and lanes: the OWASP cheat sheet's first choice.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// The most that a hash from outside may ask for: memory in KiB, passes, lanes.
const COST_LIMIT: (u32, u32, u32) = (256 * 1024, 16, 16);
/// How many hashes are worked out at once; each takes its memory and a processor.
const AT_ONCE: usize = 2;

/// A password's hash, as an argon2id PHC string.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hash(String);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

/// Why a text is no hash that can be used, or a password none that can be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PasswordError {
    #[error("it is no PHC string `$argon2id$v=19$m=…,t=…,p=…$salt$hash`: {0}")]
    NotPhc(String),
    #[error("it is a hash of {0}, and only argon2id is known")]
    NotArgon2id(String),
    #[error("it asks for more than {} MiB, {} passes or {} lanes", COST_LIMIT.0 / 1024, COST_LIMIT.1, COST_LIMIT.2)]
    TooCostly,
    #[error("it has no salt or no hash")]
    Incomplete,
    #[error("it is shorter than {MIN_PASSWORD} characters")]
    TooShort,
    #[error("it is longer than {MAX_PASSWORD} bytes")]
    TooLong,
    #[error("it holds a control character")]
    Control,
    #[error("it could not be hashed: {0}")]
    NotHashed(String),
}

impl Hash {
    /// A hash from outside.
    pub(crate) fn parse(text: &str) -> Result<Self, PasswordError> {
        let phc = PasswordHash::new(text).map_err(|e| PasswordError::NotPhc(e.to_string()))?;
        if phc.algorithm.as_str() != "argon2id" {
            return Err(PasswordError::NotArgon2id(phc.algorithm.as_str().into()));
        }
        if phc.salt.is_none() || phc.hash.is_none() {
            return Err(PasswordError::Incomplete);
        }
        let params = Params::try_from(&phc).map_err(|e| PasswordError::NotPhc(e.to_string()))?;
        if params.m_cost() > COST_LIMIT.0 || params.t_cost() > COST_LIMIT.1 || params.p_cost() > COST_LIMIT.2
        {
            return Err(PasswordError::TooCostly);
        }
        Ok(Self(text.to_owned()))
    }

    /// As it is kept.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Works hashes out, [`AT_ONCE`] at a time.
#[derive(Debug, Default)]
pub(crate) struct Hasher {
    busy: Mutex<usize>,
    freed: Condvar,
}

impl Hasher {
    fn one_of_few<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while *busy >= AT_ONCE {
            busy = self.freed.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        *busy += 1;
        drop(busy);
        let result = work();
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.freed.notify_one();
        result
    }

    /// Hashes a new password.
    pub(crate) fn hash(&self, password: &str) -> Result<Hash, PasswordError> {
        check(password)?;
        let not_hashed = |e: &dyn std::fmt::Display| PasswordError::NotHashed(e.to_string());
        let params = Params::new(COST.0, COST.1, COST.2, None).map_err(|e| not_hashed(&e))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let hash =
            self.one_of_few(|| argon2.hash_password(password.as_bytes())).map_err(|e| not_hashed(&e))?;
        Ok(Hash(hash.to_string()))
    }

    /// Whether a password is the one that was hashed. Without a hash it takes as long and says no.
    pub(crate) fn verify(&self, password: &str, hash: Option<&Hash>) -> bool {
        // Longer than any password that was ever set: no, without the work of hashing it.
        let possible = password.len() <= MAX_PASSWORD;
        let password = if possible { password } else { "" };
        self.one_of_few(|| match hash.and_then(|h| PasswordHash::new(h.as_str()).ok()) {
            Some(phc) => Argon2::default().verify_password(password.as_bytes(), &phc).is_ok() && possible,
            None => {
                let mut out = [0; 32];
                if let Ok(params) = Params::new(COST.0, COST.1, COST.2, None) {
                    let _ = Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into(
                        password.as_bytes(),
                        &[0; 16],
                        &mut out,
                    );
                }
                false
            }
        })
    }
}

/// Whether a password can be set.
fn check(password: &str) -> Result<(), PasswordError> {
    if password.chars().count() < MIN_PASSWORD {
        return Err(PasswordError::TooShort);
    }
    if password.len() > MAX_PASSWORD {
        return Err(PasswordError::TooLong);
    }
    if password.chars().any(char::is_control) {
        return Err(PasswordError::Control);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_known_again_and_another_is_not() {
        let hasher = Hasher::default();
        let hash = hasher.hash("correct horse").unwrap();
        assert!(hash.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.as_str());
        assert_eq!(Hash::parse(hash.as_str()), Ok(hash.clone()));
        assert!(hasher.verify("correct horse", Some(&hash)));
        for wrong in ["", "correct horsf", "correct horse ", &"x".repeat(5000)] {
            assert!(!hasher.verify(wrong, Some(&hash)), "{wrong}");
        }
        assert!(!hasher.verify("correct horse", None));
    }

    #[test]
    fn passwords_and_hashes_that_cannot_be_are_told_why() {
        let hasher = Hasher::default();
        assert_eq!(hasher.hash("seven77"), Err(PasswordError::TooShort));
        assert_eq!(hasher.hash(&"x".repeat(MAX_PASSWORD + 1)), Err(PasswordError::TooLong));
        assert_eq!(hasher.hash("tab\tinside"), Err(PasswordError::Control));
        let salted = |head: &str| format!("{head}$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNo");
        assert!(Hash::parse(&salted("$argon2id$v=19$m=65536,t=3,p=4")).is_ok());
        assert!(matches!(
            Hash::parse(&salted("$argon2i$v=19$m=65536,t=3,p=4")),
            Err(PasswordError::NotArgon2id(_))
        ));
        assert_eq!(Hash::parse(&salted("$argon2id$v=19$m=4000000,t=3,p=4")), Err(PasswordError::TooCostly));
        assert_eq!(Hash::parse("$argon2id$v=19$m=65536,t=3,p=4"), Err(PasswordError::Incomplete));
        assert!(matches!(Hash::parse("secret"), Err(PasswordError::NotPhc(_))));
        assert!(Hash::parse("$6$salt$hash").is_err());
    }
}
