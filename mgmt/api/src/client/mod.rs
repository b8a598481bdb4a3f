//! A blocking client of the HTTP API: over HTTPS to a host whose certificate is pinned by its fingerprint, or over the local
//! socket of the host that it runs on.
//!
//! Trust is on first use: [`certificate_of`] says which certificate a host shows, a person compares it with the one on the host's
//! console, and from then on [`Client::https`] talks to that certificate only.

mod calls;
mod connect;
mod error;
mod fingerprint;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{Method, Request, Response};
use ureq::{Agent, Body, SendBody};

pub use calls::LogQuery;
pub use connect::certificate_of;
pub use error::ClientError;
pub use fingerprint::{Fingerprint, FingerprintError};

use crate::Problem;
use connect::{HostConnector, NoLookup};
use error::Doing;

/// A JSON reply is at most this long, in bytes.
const MAX_REPLY: u64 = 64 * 1024 * 1024;
/// How long connecting may take, with the TLS handshake.
const CONNECT: Duration = Duration::from_secs(15);
/// How long a reply's head may take after the request was sent. Login is slowed by the host after failures.
const REPLY: Duration = Duration::from_secs(60);
/// How long one write may stall.
const STALL: Duration = Duration::from_secs(60);

/// How long an upload waits for the host's go-ahead before it sends anyway.
const GO_AHEAD: std::time::Duration = std::time::Duration::from_secs(5);

/// Where a host is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Over HTTPS.
    Https {
        /// `name[:port]` or `address[:port]`; the port is 443 when missing.
        host: String,
        /// The only certificate that is accepted.
        pin: Fingerprint,
    },
    /// Over the local socket.
    Local(PathBuf),
}

/// A client of one host. Clones share their connections; calls may be made from several threads.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    /// The scheme and authority that begin each URL.
    base: String,
    token: Option<String>,
    patience: Duration,
    agent: Agent,
}

impl Client {
    /// A client of the host at `host` (`name[:port]`), whose certificate must be the one with this fingerprint. Connects when the
    /// first call is made.
    pub fn https(host: &str, pin: Fingerprint) -> Result<Self, ClientError> {
        let base = connect::base_of(host)?;
        let endpoint = Endpoint::Https { host: host.into(), pin };
        let agent = agent(&endpoint, Arc::default());
        Ok(Self { endpoint, base, token: None, patience: REPLY, agent })
    }

    /// A client of the host that this process runs on.
    pub fn local() -> Self {
        Self::local_at(crate::LOCAL_SOCKET)
    }

    /// A client of the host agent that listens at `socket`.
    pub fn local_at(socket: impl AsRef<Path>) -> Self {
        let endpoint = Endpoint::Local(socket.as_ref().into());
        let agent = agent(&endpoint, Arc::default());
        Self { endpoint, base: "http://localhost".into(), token: None, patience: REPLY, agent }
    }

    /// The same, with a bearer token in each request.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The same, waiting at most this long for the head of a reply (60 s by default; calls that are known to take long add to it).
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The host's name in messages.
    pub fn host(&self) -> String {
        match &self.endpoint {
            Endpoint::Https { host, .. } => host.clone(),
            Endpoint::Local(path) => format!("the host agent at {}", path.display()),
        }
    }

    /// Sends a request and returns the reply if its status is a success, else the host's
    /// problem. `wait` is what the host may take beyond the usual.
    fn send(
        &self,
        agent: &Agent,
        method: Method,
        path: &str,
        body: Payload<'_>,
        wait: Duration,
    ) -> Result<Response<Body>, ClientError> {
        let doing = Doing {
            host: self.host(),
            request: format!("{method} {}", path.split('?').next().unwrap_or(path)),
        };
        let mut request =
            Request::builder().method(method).uri(format!("{}{}{path}", self.base, crate::BASE));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some((kind, length)) = body.head() {
            request = request.header("Content-Type", kind).header("Content-Length", length.to_string());
        }
        let timeout = Some(self.patience + wait);
        let unwritable = |e| ClientError::not_sendable(&doing, e);
        let sent = match body {
            Payload::Nothing => {
                let request = request.body(()).map_err(unwritable)?;
                agent.run(agent.configure_request(request).timeout_recv_response(timeout).build())
            }
            Payload::Bytes(_, bytes) => {
                let request = request.body(bytes).map_err(unwritable)?;
                agent.run(agent.configure_request(request).timeout_recv_response(timeout).build())
            }
            Payload::Stream(reader, _) => {
                // The host looks at the head first (RFC 9110, 10.1.1): what it has no room for is not sent.
                let request = request.header("Expect", "100-continue");
                let request = request.body(SendBody::from_reader(reader)).map_err(unwritable)?;
                let request = agent.configure_request(request).timeout_await_100(Some(GO_AHEAD));
                agent.run(request.timeout_recv_response(timeout).build())
            }
        };
        let mut reply = sent.map_err(|e| ClientError::of(&doing, e))?;
        if reply.status().is_success() {
            return Ok(reply);
        }
        let status = reply.status().as_u16();
        let text = reply
            .body_mut()
            .with_config()
            .limit(MAX_REPLY)
            .lossy_utf8(true)
            .read_to_string()
            .map_err(|e| ClientError::of(&doing, e))?;
        match serde_json::from_str::<Problem>(&text) {
            Ok(problem) => Err(ClientError::Problem(Box::new(problem))),
            Err(_) => Err(ClientError::NotKeelson {
                host: doing.host,
                why: format!(
                    "it answered {} with status {status}, and without a problem that says why",
                    doing.request
                ),
            }),
        }
    }

    /// A call whose reply is JSON.
    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Payload<'_>,
    ) -> Result<T, ClientError> {
        self.call_waiting(method, path, body, Duration::ZERO)
    }

    /// The same, for one that the host answers only after up to `wait`.
    fn call_waiting<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Payload<'_>,
        wait: Duration,
    ) -> Result<T, ClientError> {
        let request = format!("{method} {}", path.split('?').next().unwrap_or(path));
        let reply = self.send(&self.agent, method, path, body, wait)?;
        self.decode(&request, reply)
    }

    fn decode<T: DeserializeOwned>(
        &self,
        request: &str,
        mut reply: Response<Body>,
    ) -> Result<T, ClientError> {
        let doing = Doing { host: self.host(), request: request.into() };
        let bytes = reply
            .body_mut()
            .with_config()
            .limit(MAX_REPLY)
            .read_to_vec()
            .map_err(|e| ClientError::of(&doing, e))?;
        serde_json::from_slice(&bytes).map_err(|e| ClientError::NotKeelson {
            host: doing.host,
            why: format!("its answer to {request} is not what this version expects: {e}"),
        })
    }

    /// A call whose reply is empty.
    fn tell(&self, method: Method, path: &str, body: Payload<'_>) -> Result<(), ClientError> {
        self.send(&self.agent, method, path, body, Duration::ZERO).map(|_| ())
    }
}

/// What a request carries.
enum Payload<'a> {
    Nothing,
    Bytes(&'static str, Vec<u8>),
    Stream(&'a mut dyn std::io::Read, u64),
}

impl Payload<'_> {
    /// A JSON body.
    fn json<T: serde::Serialize>(value: &T) -> Self {
        // The API's types have string keys only, so writing them cannot fail; if one did, the host would name the empty body.
        Payload::Bytes("application/json", serde_json::to_vec(value).unwrap_or_default())
    }

    fn head(&self) -> Option<(&'static str, u64)> {
        match self {
            Payload::Nothing => None,
            Payload::Bytes(kind, bytes) => Some((kind, bytes.len() as u64)),
            Payload::Stream(_, length) => Some(("application/octet-stream", *length)),
        }
    }
}

/// An agent for one endpoint. `gone` is set when the host stops taking a request's body.
fn agent(endpoint: &Endpoint, gone: Arc<AtomicBool>) -> Agent {
    let config = Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .user_agent(concat!("keelson/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT))
        .timeout_per_write(Some(STALL))
        // Shorter than any host's patience with an idle connection, so that one that is about to be closed is not taken.
        .max_idle_age(Duration::from_secs(3))
        .input_buffer_size(64 * 1024)
        .output_buffer_size(64 * 1024)
        .build();
    match endpoint {
        Endpoint::Https { pin, .. } => Agent::with_parts(
            config,
            HostConnector::tls(*pin, gone),
            ureq::unversioned::resolver::DefaultResolver::default(),
        ),
        Endpoint::Local(path) => {
            Agent::with_parts(config, HostConnector::local(path.clone(), gone), NoLookup)
        }
    }
}

#[cfg(test)]
mod tests;
