//! The account root: logging in, sessions, tokens, the password.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Credentials.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// `root`.
    pub username: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Login {
    /// Without the password: a request may be logged.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// A session: a bearer token that ends when it is not used.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The bearer token.
    pub token: String,
    /// It ends after this long without a request, in seconds.
    pub idle_timeout_s: u64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("idle_timeout_s", &self.idle_timeout_s).finish_non_exhaustive()
    }
}

/// A new bearer token for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it is for, 1 to 64 characters.
    pub name: String,
    /// How long it is good, in seconds; never ends when missing.
    #[serde(default)]
    pub expires_in_s: Option<u64>,
}

/// An issued bearer token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its id.
    pub id: Uuid,
    /// What it is for.
    pub name: String,
    /// When it was issued.
    pub created: jiff::Timestamp,
    /// When it ends.
    pub expires: Option<jiff::Timestamp>,
}

/// A bearer token as it is shown once, when it is issued.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedToken {
    /// The secret. It is kept as a hash and not shown again.
    pub token: String,
    /// The rest.
    #[serde(flatten)]
    pub about: Token,
}

impl std::fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedToken").field("about", &self.about).finish_non_exhaustive()
    }
}

/// A new password. All sessions but the one that asks end.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasswordChange {
    /// The present one; not needed on the local socket while none is set.
    #[serde(default)]
    pub current: Option<String>,
    /// The new one: [`crate::MIN_PASSWORD`] characters to [`crate::MAX_PASSWORD`] bytes.
    pub new: String,
}

impl std::fmt::Debug for PasswordChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PasswordChange").finish_non_exhaustive()
    }
}
