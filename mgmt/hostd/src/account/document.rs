//! `accounts.toml`: the password's hash and the hashes of the issued tokens.

use keelson_api::Token;
use serde::{Deserialize, Serialize};

use super::password::Hash;
use crate::store::Document;

/// What is kept of the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Accounts {
    pub(crate) schema: u32,
    /// root's password as an argon2id PHC string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) root: Option<String>,
    #[serde(default)]
    pub(crate) tokens: Vec<KeptToken>,
}

/// What is kept of an issued token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptToken {
    /// The token's SHA-256, as hexadecimal digits.
    pub(crate) sha256: String,
    #[serde(flatten)]
    pub(crate) about: Token,
}

impl Default for Accounts {
    fn default() -> Self {
        Self { schema: Self::SCHEMA, root: None, tokens: Vec::new() }
    }
}

impl Document for Accounts {
    const SCHEMA: u32 = 1;
    fn validate(&self) -> Result<(), String> {
        match self.root.as_deref().map(Hash::parse) {
            Some(Err(e)) => Err(format!("root's password hash cannot be used: {e}")),
            _ => Ok(()),
        }
    }
}
