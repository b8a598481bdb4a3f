//! The DHCPv4 client of one adapter, with the link-local address that stands in while nobody answers.
//!
//! [`machine`] is RFC 2131's client as a pure state machine; [`client`] joins it with RFC 3927's; [`wire`] turns its words into
//! frames and frames into words; [`run`] gives it sockets and a clock; [`saved`] keeps a lease over a restart of netd.

pub(crate) mod client;
pub(crate) mod machine;
pub(crate) mod run;
pub(crate) mod saved;
pub(crate) mod wire;
