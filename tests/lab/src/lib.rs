//! The lab: emulated servers, light hosts, their consoles and networks, with no rack. The demo, the system tests and the bench
//! drive hosts through it, from outside, as a user does.

pub mod artefacts;
pub mod bench;
pub mod console;
pub mod dhcp_server;
pub mod esp;
pub mod forward;
pub mod guest;
pub mod light;
pub mod need;
pub mod net;
pub mod operator;
pub mod payload;
pub mod process;
pub mod qmp;
pub mod server;
