//! The virtual machine monitor: one process per machine, on KVM.
//!
//! [`machine::Machine`] is a running machine: guest memory, vCPU threads, buses and devices. It is built from descriptors alone,
//! so that the process needs no right to open anything. Devices know neither control sockets nor how state travels: they
//! implement [`devices::bus::BusDevice`] to run and [`devices::saved::Saved`] to move.

pub mod acpi;
pub mod boot;
pub mod cli;
pub mod console;
pub mod control;
pub mod devices;
pub mod kvm;
pub mod launch;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod state;
#[allow(unsafe_code)]
mod sys;
pub mod terminal;
pub mod virtio;
