//! The inside: tiny_http, on a socket that only the front speaks to, runs the routes.
//!
//! The front hands each request over with a ticket: a random word, good once, that leads to what the front knows about the request
//! and what is not said in HTTP (who asks, whether the client is still there). A request without a ticket is nobody's and is refused.
//!
//! Bodies come in chunks whatever the client announced, on a connection that carries one request. The request asks tiny_http for an
//! upgrade, which leaves the body to us: its own chunk reader takes a body that was cut for one that ended.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

use keelson_api::{Fault, Problem};

use super::{Access, Caller, Gone, Method, Request, Resolved, Response, Router, Target};
use crate::account::SessionKey;
use crate::front::chunked;
use crate::random;

/// The header that carries the ticket.
pub(crate) const TICKET_HEADER: &str = "x-keelson-ticket";

/// What the front knows about a request.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// Who asks.
    pub caller: Caller,
    /// The session that was used.
    pub(crate) session: Option<SessionKey>,
    /// The network peer.
    pub peer: Option<IpAddr>,
    /// The announced length of the body.
    pub content_length: Option<u64>,
    /// Whether there is a body.
    pub has_body: bool,
    /// Told when the client goes.
    pub gone: Gone,
}

/// Why the inside could not be started.
#[derive(Debug, thiserror::Error)]
pub enum InnerError {
    /// No socket.
    #[error("the socket between the front and tiny_http could not be made")]
    Socket(#[source] io::Error),
    /// tiny_http refused it.
    #[error("tiny_http did not start: {0}")]
    Server(Box<dyn std::error::Error + Send + Sync>),
    /// No thread.
    #[error("the thread of tiny_http could not be started")]
    Thread(#[source] io::Error),
}

/// The inside, as the front sees it.
#[derive(Debug)]
pub struct Inner {
    address: SocketAddr,
    tickets: Arc<Tickets>,
    router: Arc<Router>,
}

#[derive(Debug, Default)]
struct Tickets(Mutex<HashMap<String, Ticket>>);

impl Tickets {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Ticket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Starts it.
    pub fn start(router: Router) -> Result<Arc<Self>, InnerError> {
        // An abstract name needs no directory that hostd may write; whoever guesses it still lacks a ticket.
        let name = format!("keelson-hostd-{}", random::hex::<16>().map_err(InnerError::Socket)?);
        let address = SocketAddr::from_abstract_name(name).map_err(InnerError::Socket)?;
        let listener = UnixListener::bind_addr(&address).map_err(InnerError::Socket)?;
        let server = tiny_http::Server::from_listener(listener, None).map_err(InnerError::Server)?;
        let inner = Arc::new(Self { address, tickets: Arc::default(), router: Arc::new(router) });
        let (tickets, router) = (inner.tickets.clone(), inner.router.clone());
        let serve = move || {
            loop {
                match server.recv() {
                    Ok(request) => spawn(request, &tickets, &router),
                    Err(e) => {
                        // tiny_http stops accepting after the first error, for good. init starts a new hostd; guests do not notice.
                        log::error!(
                            "the HTTP server no longer accepts connections ({e}); hostd ends to be restarted"
                        );
                        std::process::exit(70);
                    }
                }
            }
        };
        std::thread::Builder::new().name("http".into()).spawn(serve).map_err(InnerError::Thread)?;
        Ok(inner)
    }

    /// All routes.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Opens a connection for one request, and returns it with the ticket's word.
    pub(crate) fn open(&self, ticket: Ticket) -> io::Result<(UnixStream, Hold)> {
        let word = random::hex::<32>()?;
        let stream = UnixStream::connect_addr(&self.address)?;
        self.tickets.lock().insert(word.clone(), ticket);
        Ok((stream, Hold { word, tickets: self.tickets.clone() }))
    }
}

/// A ticket that has not been used yet; dropping it takes it back.
#[derive(Debug)]
pub(crate) struct Hold {
    /// The word.
    pub(crate) word: String,
    tickets: Arc<Tickets>,
}

impl Hold {
    /// The head with the word has been sent whole, so the inside will use the ticket. From here on a request runs even if its client
    /// does not wait for the answer; a body that was cut tells the route.
    pub(crate) fn sent(mut self) {
        self.word.clear();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.tickets.lock().remove(&self.word);
    }
}

fn spawn(request: tiny_http::Request, tickets: &Arc<Tickets>, router: &Arc<Router>) {
    let word =
        request.headers().iter().find(|h| h.field.equiv(TICKET_HEADER)).map(|h| h.value.as_str().to_owned());
    let ticket = word.and_then(|word| tickets.lock().remove(&word));
    let Some(ticket) = ticket else {
        let _ = request.respond(tiny_http::Response::empty(403));
        return;
    };
    let router = router.clone();
    // One thread a request: routes may block (a console, a task that is waited for). The front bounds how many there are.
    let run = move || answer(request, ticket, &router);
    if let Err(e) = std::thread::Builder::new().name("route".into()).spawn(run) {
        log::error!("a request was dropped: no thread for it could be started: {e}");
    }
}

/// tiny_http lends its reader only through the request, which the answer needs as well.
type Shared = Arc<Mutex<Option<tiny_http::Request>>>;

struct RawBody(Shared);

impl Read for RawBody {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(request) => request.as_reader().read(buf),
            None => Err(io::Error::other("the request has been answered")),
        }
    }
}

fn answer(http: tiny_http::Request, ticket: Ticket, router: &Router) {
    let method = Method::parse(&http.method().to_string());
    let target = Target::parse(http.url().as_bytes());
    let shared: Shared = Arc::new(Mutex::new(Some(http)));
    let body: Box<dyn Read + Send> = if ticket.has_body {
        Box::new(chunked::Decoder::new(io::BufReader::with_capacity(
            chunked::BUFFER,
            RawBody(shared.clone()),
        )))
    } else {
        Box::new(io::empty())
    };
    let result = match (method, target) {
        (Some(method), Ok(target)) => run(method, target, ticket, body, router),
        _ => Err(Problem::new(Fault::SystemError, "the front passed on a request that cannot be read")),
    };
    let taken = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(http) = taken
        && let Err(e) = respond(http, result)
    {
        log::debug!("an answer did not reach the front: {e}");
    }
}

fn run(
    method: Method,
    target: Target,
    ticket: Ticket,
    body: Box<dyn Read + Send>,
    router: &Router,
) -> super::Result {
    let segments = below_base(&target.segments).map(<[String]>::to_vec).unwrap_or_default();
    let Resolved::Route { access, run, .. } = router.resolve(method, &segments) else {
        return Err(Problem::new(Fault::NotFound, format!("there is nothing at {}", target.canonical())));
    };
    // The front has decided this already; a mistake there shall not be enough.
    let allowed = match access {
        Access::Public | Access::Anyone => true,
        Access::Root => matches!(ticket.caller, Caller::Root { .. }),
        Access::LocalOnly => ticket.caller.is_local(),
    };
    if !allowed {
        return Err(Problem::new(Fault::NotAuthenticated, "this needs root"));
    }
    let mut request = Request {
        method,
        segments,
        query: target.query,
        caller: ticket.caller,
        content_length: ticket.content_length,
        body,
        peer: ticket.peer,
        session: ticket.session,
        gone: ticket.gone,
    };
    run(&mut request)
}

/// The segments below [`keelson_api::BASE`]. `/healthz` is also known without it.
pub(crate) fn below_base(segments: &[String]) -> Option<&[String]> {
    match segments {
        [api, version, rest @ ..] if api == "api" && version == "v1" => Some(rest),
        [health] if health == "healthz" => Some(segments),
        _ => None,
    }
}

fn header(name: &str, value: &str) -> Option<tiny_http::Header> {
    tiny_http::Header::from_bytes(name, value).ok()
}

fn respond(http: tiny_http::Request, result: super::Result) -> io::Result<()> {
    match result {
        Ok(Response::Json(status, value)) => {
            send(http, status, "application/json", value.to_string().into_bytes())
        }
        Ok(Response::Empty(status)) => http.respond(tiny_http::Response::empty(status)),
        Ok(Response::Bytes { status, content_type, reader, length }) => {
            let length = length.and_then(|n| usize::try_from(n).ok());
            let response = tiny_http::Response::new(
                status.into(),
                header("Content-Type", content_type).into_iter().collect(),
                reader,
                length,
                None,
            );
            http.respond(response.with_chunked_threshold(usize::MAX))
        }
        Ok(Response::Stream { content_type, run }) => {
            // tiny_http would hold a stream back until it has 8 KiB of it.
            let mut to = http.into_writer();
            write!(
                to,
                "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
            )?;
            to.flush()?;
            let mut chunks = chunked::Encoder::new(to);
            run(&mut chunks);
            chunks.finish()
        }
        Err(problem) => {
            let body = serde_json::to_vec(&problem).map_err(io::Error::other)?;
            send(http, problem.status, "application/problem+json", body)
        }
    }
}

fn send(http: tiny_http::Request, status: u16, content_type: &str, body: Vec<u8>) -> io::Result<()> {
    let response =
        tiny_http::Response::from_data(body).with_status_code(status).with_chunked_threshold(usize::MAX);
    http.respond(match header("Content-Type", content_type) {
        Some(header) => response.with_header(header),
        None => response,
    })
}
