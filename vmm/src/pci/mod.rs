//! The PCI bus of a machine.
