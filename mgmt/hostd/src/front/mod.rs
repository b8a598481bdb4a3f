//! The front: what stands before tiny_http. It ends TLS, reads heads strictly, decides who may, bounds everything, and passes
//! requests inside in its own words.

mod admit;
mod answer;
mod certificate;
pub(crate) mod chunked;
mod connection;
mod head;
mod limits;
mod listen;
mod network;
mod open;
mod tls;
mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;

use crate::agent::Agent;
use crate::http::{Inner, InnerError, Router};
use certificate::{Certificate, CertificateError};
use connection::Shared;
use limits::Connections;

pub use listen::Listening;

/// The port of HTTPS.
pub const PORT: u16 = 443;

/// The front.
#[derive(Debug)]
pub struct Front {
    shared: Arc<Shared>,
    connections: Connections,
    tls: Arc<ServerConfig>,
}

/// Why the front could not start.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct FrontError(FrontErrorKind);

#[derive(Debug, thiserror::Error)]
enum FrontErrorKind {
    #[error("the host has no certificate")]
    Certificate(#[source] CertificateError),
    #[error("TLS cannot be configured")]
    Tls(#[source] rustls::Error),
    #[error("the inside of the HTTP server did not start")]
    Inner(#[source] InnerError),
}

impl Front {
    /// Makes or reads the certificate and starts the inside; nothing listens yet. `addresses` go into a certificate that is made now.
    pub fn start(agent: Arc<Agent>, router: Router, addresses: &[IpAddr]) -> Result<Arc<Self>, FrontError> {
        let certificate =
            Certificate::open(&agent.paths.tls_dir(), &agent.hostname(), addresses, &agent.conditions)
                .map_err(|e| FrontError(FrontErrorKind::Certificate(e)))?;
        agent.set_fingerprint(certificate.fingerprint());
        let tls = tls::config(certificate).map_err(|e| FrontError(FrontErrorKind::Tls(e)))?;
        let inner = Inner::start(router).map_err(|e| FrontError(FrontErrorKind::Inner(e)))?;
        Ok(Arc::new(Self {
            shared: Arc::new(Shared { agent, inner }),
            connections: Connections::default(),
            tls,
        }))
    }

    /// Listens on the local socket at `path`, where root is root.
    pub fn listen_local(self: &Arc<Self>, path: &Path) -> io::Result<Listening> {
        listen::local(self.clone(), path)
    }

    /// Listens with TLS on an address, on all interfaces that have it.
    pub fn listen_on(self: &Arc<Self>, address: SocketAddr) -> io::Result<Listening> {
        listen::tls(self.clone(), TcpListener::bind(address)?, None)
    }

    /// Listens with TLS on every VMkernel adapter that carries `management`, and follows netd's changes.
    pub fn follow_network(self: &Arc<Self>) -> io::Result<()> {
        network::follow(self.clone())
    }
}

/// The account's routes and those of identity and health.
pub fn install_routes(router: &mut Router, agent: &Arc<Agent>) {
    crate::account::routes::install(router, agent);
}
