//! The devices of a machine, and the seams between a device and the machine that holds it.

pub mod acpi_pm;
pub mod bus;
pub mod lines;
pub mod reset;
pub mod rtc;
pub mod saved;
pub mod serial;

use std::sync::Arc;

/// What a device can ask of the machine as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched itself off.
    PowerOff,
    /// The guest reset itself.
    Reset,
}

/// How a device asks: the vCPU that made the access stops before its next instruction.
pub type Ask = Arc<dyn Fn(Outcome) + Send + Sync>;

/// A level-triggered interrupt line of the machine's interrupt controllers.
pub type LevelLine = Box<dyn Fn(bool) + Send>;
