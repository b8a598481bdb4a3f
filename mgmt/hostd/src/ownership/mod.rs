//! Who may run a VM: one register in the VM's directory, the highest `owner.<epoch>`. docs/ownership.md is its description.
//!
//! What is decided is a pure machine ([`Take`]) and what is done is elsewhere ([`register`]), so that a test can walk through every
//! interleaving of several hosts with the decisions that ship.

mod decide;
mod epoch;
mod owners;
mod record;
pub mod register;
mod taking;

#[cfg(test)]
mod explore;

pub use decide::{
    Answer, Claim, Handover, Highest, Outcome, Progress, Proof, Reading, Refusal, Step, Take, Trouble, permit,
};
pub use epoch::Epoch;
pub use owners::{Entry, Owners, TakeError};
pub use record::{Cause, Damage, MAX_NOTE, MAX_RECORD, Record, State};
pub use taking::Taking;
