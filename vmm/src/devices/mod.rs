//! The devices of a machine, and the seams between a device and the machine that holds it.

pub mod bus;
pub mod lines;
pub mod saved;
