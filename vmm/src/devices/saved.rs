//! What a device must offer so that its state can travel: one trait, and the reason why a state is refused.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A device whose state can be saved and restored. Saving has no default: a device without state says so with `type State = ()`.
///
/// What belongs to the host (descriptors, interrupt lines) never travels: it is handed to [`Saved::restore`] as `Host`.
pub trait Saved: Sized {
    /// The name of the section that holds the state.
    const KIND: &'static str;
    /// The version of [`Saved::State`]. A released version is frozen; a change is a new struct, a new number and a `From`.
    const VERSION: u16;
    /// What travels.
    type State: Serialize + DeserializeOwned;
    /// What the host gives the device anew.
    type Host;

    /// The state as it is now. The device is quiet (its machine is paused).
    fn save(&self) -> Self::State;
    /// A device in exactly that state, or the first field that cannot be.
    fn restore(state: Self::State, host: Self::Host) -> Result<Self, BadState>;
}

/// A saved state that no device of ours can be in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("saved state: {field}: {problem}")]
pub struct BadState {
    /// The field.
    pub field: &'static str,
    /// What is wrong with its value.
    pub problem: String,
}

impl BadState {
    /// A refusal of `field`.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }

    /// Refuses a value with bits outside `allowed`.
    pub fn unless_within(field: &'static str, value: u64, allowed: u64) -> Result<(), Self> {
        if value & !allowed == 0 {
            return Ok(());
        }
        Err(Self::new(field, format!("{value:#x} has bits outside {allowed:#x}")))
    }
}
