//! The host agent's services, driven over its local socket: the real binary between servers that speak init's, netd's and the
//! monitors' words from this process (so that they outlive a host agent that is killed).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod cpu;
mod examples;
mod fake_init;
mod fake_netd;
mod fake_vmm;
mod host;
mod http;
mod life;
mod owners;
mod uploads;
