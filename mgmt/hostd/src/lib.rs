//! hostd, the host agent: the HTTP API of a host.
//!
//! `front` takes connections and lets only clean requests through; `http` carries them to their routes; `account` knows root;
//! the other modules are what the routes speak of.

pub mod account;
pub mod agent;
pub mod conditions;
pub mod front;
pub mod http;
pub mod paths;
pub(crate) mod random;
pub mod store;
