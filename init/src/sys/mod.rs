//! The system calls of init that no crate wraps, each behind a safe function.

pub(crate) mod child;
pub(crate) mod ioctl;
pub(crate) mod module;
pub(crate) mod priority;
