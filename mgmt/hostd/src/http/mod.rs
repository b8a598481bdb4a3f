//! What a route is given and what it answers: requests and responses between the front and the services.

mod gone;
mod json;
mod router;
mod server;
mod target;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};

use keelson_api::{Fault, Problem};
use serde::Serialize;

pub use gone::Gone;
pub use router::{Access, BodyClass, Params, Resolved, Router};
pub use server::{Inner, InnerError, Ticket};
pub(crate) use server::{TICKET_HEADER, below_base};
pub use target::{Target, TargetError};

/// The largest JSON body, in bytes.
pub const MAX_JSON: u64 = 1 << 20;

/// A request's method. Others are refused by the front.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    /// As it is written in a request line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    /// From a request line; `None` for a method that nothing here answers to. Methods are case-sensitive.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Get, Self::Head, Self::Post, Self::Put, Self::Patch, Self::Delete]
            .into_iter()
            .find(|m| m.as_str() == text)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who asks. The front has decided it, and whether that is enough for the route, before the route runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Someone without credentials; only routes for anyone see it.
    Anonymous,
    /// root.
    Root {
        /// For logs and tasks, such as `root` or `root (local)`.
        who: String,
        /// Whether the request came over the local socket.
        local: bool,
    },
}

impl Caller {
    /// For logs and tasks.
    pub fn who(&self) -> &str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Root { who, .. } => who,
        }
    }

    /// Whether the request came over the local socket.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Root { local: true, .. })
    }
}

/// A request, as a route sees it.
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path below the API's base, percent-decoded, one entry a segment.
    pub segments: Vec<String>,
    /// The query, percent-decoded; no name comes twice.
    pub query: BTreeMap<String, String>,
    /// Who asks.
    pub caller: Caller,
    /// The body's length in bytes, where the client announced it.
    pub content_length: Option<u64>,
    /// The body. A read fails when the client vanished before the end: an end that reads as 0 is the true end.
    pub body: Box<dyn Read + Send>,
    /// The address of the network peer; `None` on the local socket.
    pub peer: Option<std::net::IpAddr>,
    /// The session that was used, where it was one.
    pub(crate) session: Option<crate::account::SessionKey>,
    gone: Gone,
}

impl Request {
    /// Tells when the client has closed its connection: for routes that wait or stream.
    pub fn gone(&self) -> Gone {
        self.gone.clone()
    }

    /// A query parameter as a number, `default` when it is missing.
    pub fn query_u64(&self, name: &str, default: u64) -> std::result::Result<u64, Problem> {
        match self.query.get(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| {
                Problem::new(
                    Fault::InvalidArgument,
                    format!("the query parameter `{name}` is `{text}`, which is no whole number"),
                )
                .field(name)
                .remedy("give a number from 0 upwards")
            }),
        }
    }

    /// Refuses query parameters other than these.
    pub fn only_query(&self, known: &[&str]) -> std::result::Result<(), Problem> {
        match self.query.keys().find(|k| !known.contains(&k.as_str())) {
            None => Ok(()),
            Some(name) => {
                let remedy = if known.is_empty() {
                    "this path takes none".to_owned()
                } else {
                    format!("known are: {}", known.join(", "))
                };
                Err(Problem::new(
                    Fault::InvalidArgument,
                    format!("there is no query parameter `{name}` here"),
                )
                .field(name.clone())
                .remedy(remedy))
            }
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("segments", &self.segments)
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

/// What a stream does once its head is sent: it writes until it is done or a write fails. Each write is sent at once.
pub type StreamRun = Box<dyn FnOnce(&mut dyn Write) + Send>;

/// What a route answers.
pub enum Response {
    /// A status and JSON.
    Json(u16, serde_json::Value),
    /// A status without a body.
    Empty(u16),
    /// Bytes from a reader.
    Bytes {
        /// The HTTP status.
        status: u16,
        /// Such as `text/plain; charset=utf-8`.
        content_type: &'static str,
        /// Where they come from.
        reader: Box<dyn Read + Send>,
        /// How many; sent in chunks when unknown.
        length: Option<u64>,
    },
    /// Bytes that go on until the route or the client ends them. Status 200.
    Stream {
        /// Such as `application/octet-stream`.
        content_type: &'static str,
        /// Writes them.
        run: StreamRun,
    },
}

impl Response {
    /// A value as JSON.
    pub fn json(status: u16, value: &impl Serialize) -> Result {
        match serde_json::to_value(value) {
            Ok(value) => Ok(Self::Json(status, value)),
            Err(e) => {
                Err(Problem::new(Fault::SystemError, format!("the answer could not be written as JSON: {e}")))
            }
        }
    }

    /// 200 and a value as JSON.
    pub fn ok(value: &impl Serialize) -> Result {
        Self::json(200, value)
    }

    /// Text.
    pub fn text(text: String) -> Self {
        let length = Some(text.len() as u64);
        Self::Bytes {
            status: 200,
            content_type: "text/plain; charset=utf-8",
            reader: Box::new(std::io::Cursor::new(text)),
            length,
        }
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(status, _) => write!(f, "Json({status})"),
            Self::Empty(status) => write!(f, "Empty({status})"),
            Self::Bytes { status, content_type, .. } => write!(f, "Bytes({status}, {content_type})"),
            Self::Stream { content_type, .. } => write!(f, "Stream({content_type})"),
        }
    }
}

/// What a route returns.
pub type Result = std::result::Result<Response, Problem>;
