//! Drivers: which the hardware asks for, in which order they are loaded, and what happens when hardware comes later.

mod coldplug;
mod fixed;
mod loader;
mod matcher;
mod modprobe;
mod pool;
mod tables;
mod uevent;

pub(crate) use modprobe::run as modprobe;
pub(crate) use pool::{Drivers, Stage};
