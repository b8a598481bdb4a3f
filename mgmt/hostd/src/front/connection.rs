//! One connection: request after request, each read strictly, decided, passed inside and answered.

use std::io::{self, BufWriter, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use keelson_api::{Fault, Problem};
use nix::poll::PollFlags;

use super::admit::{Admitted, admit, too_large};
use super::answer::{self, Passed};
use super::chunked::{self, ChunkError, Decoder, Encoder};
use super::head::{Arrived, Framing, Head, HeadError, find_end};
use super::limits::{HEAD_TIME, IDLE_TIME, LINGER_TIME, SMALL_BODY_TIME, STALL_TIME};
use super::wire::{Client, wait_for};
use crate::agent::Agent;
use crate::http::{Gone, Inner, Ticket};

/// What every connection needs.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) agent: Arc<Agent>,
    pub(crate) inner: Arc<Inner>,
}

/// What comes after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The next one.
    Request,
    /// The end. The client has said all it had to say.
    Close,
    /// The end, in the middle of what the client says.
    CloseEarly,
}

/// Serves a connection to its end. `peer` is `None` for the local socket.
pub(crate) fn serve(mut client: Client, peer: Option<IpAddr>, shared: &Shared) {
    let mut first = true;
    loop {
        match request(&mut client, peer, shared, first) {
            Ok(Next::Request) => first = false,
            Ok(Next::Close) => return client.close(Duration::ZERO),
            Ok(Next::CloseEarly) => return client.close(LINGER_TIME),
            Err(e) => {
                log::debug!("a connection ended: {e}");
                return;
            }
        }
    }
}

/// Refuses a connection that may not be here.
pub(crate) fn refuse(mut client: Client, problem: &Problem) {
    let _ = answer::problem(&mut client, problem, None, Vec::new(), true);
    client.close(LINGER_TIME);
}

fn malformed(why: impl std::fmt::Display) -> Problem {
    Problem::new(Fault::MalformedRequest, format!("the request is refused: {why}"))
        .remedy("send HTTP/1.1 as RFC 9112 writes it")
}

fn request(client: &mut Client, peer: Option<IpAddr>, shared: &Shared, first: bool) -> io::Result<Next> {
    let head = match read_head(client, first)? {
        Read1::Head(head) => head,
        Read1::End => return Ok(Next::Close),
        Read1::Refused(error) => {
            let problem = match &error {
                HeadError::UnknownMethod => Problem::new(Fault::MethodNotAllowed, error.to_string())
                    .remedy("known are GET, POST, PUT, PATCH and DELETE"),
                HeadError::TooLarge => Problem::new(Fault::RequestTooLarge, error.to_string()),
                _ => malformed(&error),
            };
            answer::problem(client, &problem, None, Vec::new(), true)?;
            return Ok(Next::CloseEarly);
        }
        Read1::Late => {
            answer::problem(client, &malformed("its head did not arrive in time"), None, Vec::new(), true)?;
            return Ok(Next::Close);
        }
    };
    let has_body = !matches!(head.body, Framing::None | Framing::Length(0));
    match admit(&head, peer, &shared.agent, shared.inner.router()) {
        Ok(admitted) => pass_inside(client, &head, has_body, peer, admitted, shared),
        Err(refused) => {
            if !refused.delay.is_zero()
                && !wait_for(client.as_fd(), client.hung_up(), refused.delay)?.is_empty()
            {
                return Ok(Next::Close);
            }
            let close = head.close || has_body;
            answer::problem(client, &refused.problem, Some(head.method), refused.allow, close)?;
            Ok(if has_body {
                Next::CloseEarly
            } else if close {
                Next::Close
            } else {
                Next::Request
            })
        }
    }
}

enum Read1 {
    Head(Box<Head>),
    /// The client closed between requests, or let the connection lie.
    End,
    Refused(HeadError),
    Late,
}

fn read_head(client: &mut Client, first: bool) -> io::Result<Read1> {
    client.limit(if first { HEAD_TIME } else { IDLE_TIME }, None);
    while client.ahead().is_empty() {
        match client.read_ahead() {
            Ok(true) => {}
            Ok(false) => return Ok(Read1::End),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::TimedOut | io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ) =>
            {
                return Ok(Read1::End);
            }
            Err(e) => return Err(e),
        }
    }
    client.limit(HEAD_TIME, Some(HEAD_TIME));
    loop {
        match find_end(client.ahead()) {
            Err(error) => return Ok(Read1::Refused(error)),
            Ok(Arrived::Whole(length)) => {
                let head = client.ahead().get(..length).map_or(Err(HeadError::LineEnd), Head::parse);
                io::BufRead::consume(client, length);
                return Ok(match head {
                    Ok(head) => Read1::Head(Box::new(head)),
                    Err(error) => Read1::Refused(error),
                });
            }
            Ok(Arrived::Partly) => match client.read_ahead() {
                Ok(true) => {}
                Ok(false) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(Read1::Late),
                Err(e) => return Err(e),
            },
        }
    }
}

/// How the passing of a body inside ended.
enum Sent {
    Whole,
    /// The inside has answered before the end, or takes no more.
    InsideAnswers,
    TooLarge(u64),
    Malformed(io::Error),
    Late,
    ClientGone,
}

fn pass_inside(
    client: &mut Client,
    head: &Head,
    has_body: bool,
    peer: Option<IpAddr>,
    admitted: Admitted,
    shared: &Shared,
) -> io::Result<Next> {
    let gone = Gone::default();
    let content_length = match head.body {
        Framing::None => Some(0),
        Framing::Length(length) => Some(length),
        Framing::Chunked => None,
    };
    let ticket = Ticket {
        caller: admitted.caller,
        session: admitted.session,
        peer,
        content_length,
        has_body,
        gone: gone.clone(),
    };
    let (inner, hold) = shared.inner.open(ticket)?;
    (&inner).write_all(head.canonical(&hold.word).as_bytes())?;
    hold.sent();
    let mut close = head.close;
    if has_body {
        if head.expects_continue && client.ahead().is_empty() {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            client.flush()?;
        }
        client.limit(STALL_TIME, admitted.body_limit.map(|_| SMALL_BODY_TIME));
        let refusal = match send_body(client, &inner, head.body, admitted.body_limit)? {
            Sent::Whole => None,
            Sent::InsideAnswers => {
                close = true;
                None
            }
            Sent::TooLarge(limit) => Some(too_large(limit)),
            Sent::Malformed(why) => Some(malformed(why)),
            Sent::Late => Some(malformed("its body did not arrive in time")),
            Sent::ClientGone => {
                gone.set();
                return Ok(Next::Close);
            }
        };
        if let Some(problem) = refusal {
            // The inside sees a body that ends before its end, and undoes what it had begun.
            drop(inner);
            gone.set();
            answer::problem(client, &problem, Some(head.method), Vec::new(), true)?;
            return Ok(Next::CloseEarly);
        }
    }
    let early = close && !head.close;
    match answer::pass_on(&inner, client, head.method, close, &gone) {
        Ok(Passed::Whole) if early => Ok(Next::CloseEarly),
        Ok(Passed::Whole) if close => Ok(Next::Close),
        Ok(Passed::Whole) => Ok(Next::Request),
        Ok(Passed::Broken) => Err(io::ErrorKind::BrokenPipe.into()),
        Ok(Passed::Nothing) => {
            let problem = Problem::new(Fault::SystemError, "the host agent gave no answer")
                .remedy("look at the host's log");
            answer::problem(client, &problem, Some(head.method), Vec::new(), true)?;
            Ok(Next::CloseEarly)
        }
        Err(e) => {
            gone.set();
            Err(e)
        }
    }
}

fn send_body(
    client: &mut Client,
    inner: &UnixStream,
    framing: Framing,
    limit: Option<u64>,
) -> io::Result<Sent> {
    let (mut from, announced): (Box<dyn Read + '_>, Option<u64>) = match framing {
        Framing::None => return Ok(Sent::Whole),
        Framing::Length(length) => (Box::new(client.take(length)), Some(length)),
        Framing::Chunked => (Box::new(Decoder::new(client)), None),
    };
    let mut to = Encoder::new(BufWriter::with_capacity(chunked::BUFFER + 64, inner));
    let mut buffer = vec![0; chunked::BUFFER];
    let mut passed = 0_u64;
    loop {
        if !wait_for(inner.as_fd(), PollFlags::POLLIN, Duration::ZERO)?.is_empty() {
            return Ok(Sent::InsideAnswers);
        }
        let read = match from.read(&mut buffer) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(Sent::Late),
            Err(e) if e.get_ref().is_some_and(|inside| inside.is::<ChunkError>()) => {
                return Ok(Sent::Malformed(e));
            }
            Err(_) => return Ok(Sent::ClientGone),
        };
        let Some(data) = buffer.get(..read).filter(|data| !data.is_empty()) else { break };
        passed += read as u64;
        if let Some(limit) = limit.filter(|limit| passed > *limit) {
            return Ok(Sent::TooLarge(limit));
        }
        if to.write_all(data).is_err() {
            return Ok(Sent::InsideAnswers);
        }
    }
    if announced.is_some_and(|length| passed < length) {
        return Ok(Sent::ClientGone);
    }
    Ok(if to.finish().is_ok() { Sent::Whole } else { Sent::InsideAnswers })
}
