//! Virtio devices behind PCI.
