//! How devices reach the guest's interrupt controllers and are reached by its doorbells: the traits that KVM (or a test) implements.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// A message-signalled interrupt as the guest wrote it (PCI 3.0, 6.8.1): a write of `data` to `address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// The message address.
    pub address: u64,
    /// The message data.
    pub data: u32,
}

/// One interrupt vector of a device: writing `event` raises whatever message is routed to `gsi` at that time.
#[derive(Debug)]
pub struct MsiLine {
    /// The global system interrupt by which KVM knows the vector.
    pub gsi: u32,
    /// Bound to the GSI by KVM_IRQFD.
    pub event: EventFd,
}

/// Message-signalled interrupts.
pub trait MsiRouter: Send + Sync {
    /// A new vector, routed nowhere yet.
    fn allocate(&self) -> io::Result<MsiLine>;
    /// Routes the vector; `None` masks it: events that come while it is masked are lost, so a device keeps them pending itself.
    fn route(&self, gsi: u32, message: Option<MsiMessage>) -> io::Result<()>;
}

/// Doorbells: a guest's write of any value and any size to `address` signals the event (KVM_IOEVENTFD) without the monitor.
pub trait Doorbells: Send + Sync {
    /// Connects the address to the event.
    fn assign(&self, address: u64, event: &EventFd) -> io::Result<()>;
    /// Takes the connection away.
    fn unassign(&self, address: u64, event: &EventFd) -> io::Result<()>;
}
