//! What a person should know about hostd itself, by a stable code.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use keelson_api::Condition;

/// The conditions that hold now. At most one for each code.
#[derive(Debug, Default)]
pub struct Conditions(Mutex<BTreeMap<&'static str, Condition>>);

impl Conditions {
    /// Sets one; said in the log when it is new or has changed.
    pub fn set(&self, code: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        let condition = Condition { code: code.into(), message: message.into(), remedy: remedy.into() };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(code) != Some(&condition) {
            log::warn!("{code}: {}; {}", condition.message, condition.remedy);
            all.insert(code, condition);
        }
    }

    /// Takes one back.
    pub fn clear(&self, code: &str) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(code).is_some() {
            log::info!("{code}: no longer so");
        }
    }

    /// All of them, in the order of their codes.
    pub fn all(&self) -> Vec<Condition> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
