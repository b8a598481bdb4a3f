//! hostd, the host agent: the HTTP API of a host.
//!
//! `front` takes connections and lets only clean requests through; `http` carries them to their routes; `account` knows root;
//! the other modules are what the routes speak of.

// A Problem is the answer to a request, made once for each that fails: its size does not matter.
#![allow(clippy::result_large_err)]

pub mod account;
pub mod agent;
pub mod conditions;
pub mod datastores;
pub mod front;
pub mod hardware;
mod host;
pub mod http;
mod logs;
pub mod network;
pub mod ownership;
pub mod paths;
mod power;
pub mod problems;
pub(crate) mod random;
pub mod routes;
pub mod services;
pub mod store;
pub mod tasks;
pub mod units;
pub mod vms;
