//! What goes back to the client: heads of ours, and bodies as the inside gives them.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use keelson_api::Problem;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::chunked::{self, Decoder, Encoder};
use super::wire::{Client, happened};
use crate::http::{Gone, Method};

/// The largest head of the inside, in bytes; it is ours and small.
const MAX_INNER_HEAD: u64 = 16 * 1024;

/// A response's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    pub(crate) content_type: Option<String>,
    pub(crate) body: ResponseBody,
    pub(crate) allow: Vec<Method>,
    /// Whether the connection closes after it.
    pub(crate) close: bool,
}

/// How a response's body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResponseBody {
    Length(u64),
    Chunked,
}

impl ResponseHead {
    /// As it is sent.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        let mut field = |name: &str, value: &str| {
            for part in [name, ": ", value, "\r\n"] {
                text.push_str(part);
            }
        };
        if let Ok(date) =
            jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&jiff::Timestamp::now())
        {
            field("Date", &date);
        }
        // Nothing here is a page, and nothing may be kept by a cache.
        field("Cache-Control", "no-store");
        field("X-Content-Type-Options", "nosniff");
        if let Some(kind) = &self.content_type {
            field("Content-Type", kind);
        }
        if self.status == 401 {
            field("WWW-Authenticate", "Bearer");
        }
        if !self.allow.is_empty() {
            field("Allow", &self.allow.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(", "));
        }
        match self.body {
            // RFC 9110, 8.6: not with 204.
            ResponseBody::Length(_) if self.status == 204 => {}
            ResponseBody::Length(length) => field("Content-Length", &length.to_string()),
            ResponseBody::Chunked => field("Transfer-Encoding", "chunked"),
        }
        if self.close {
            field("Connection", "close");
        }
        text.push_str("\r\n");
        text
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        _ => "Status",
    }
}

/// Sends a problem of the front's own. `method` is `None` when it is not known.
pub(crate) fn problem(
    client: &mut Client,
    problem: &Problem,
    method: Option<Method>,
    allow: Vec<Method>,
    close: bool,
) -> io::Result<()> {
    let body = serde_json::to_vec(problem).map_err(io::Error::other)?;
    let head = ResponseHead {
        status: problem.status,
        content_type: Some("application/problem+json".into()),
        body: ResponseBody::Length(body.len() as u64),
        allow,
        close,
    };
    let mut message = head.text().into_bytes();
    if method != Some(Method::Head) {
        message.extend(body);
    }
    client.write_all(&message)?;
    client.flush()
}

/// How the passing on of an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passed {
    /// The client has it whole.
    Whole,
    /// The client has gone, or the answer broke off: the connection cannot be used any more.
    Broken,
    /// The inside said nothing.
    Nothing,
}

/// Waits until the inside has something to say.
fn inside_speaks(inner: BorrowedFd<'_>, client: BorrowedFd<'_>, hung_up: PollFlags) -> io::Result<bool> {
    loop {
        let mut fds = [PollFd::new(inner, PollFlags::POLLIN), PollFd::new(client, hung_up)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(_) => {}
        }
        let [inner, client] = fds.map(|fd| happened(&fd));
        if !client.is_empty() {
            return Ok(false);
        }
        if !inner.is_empty() {
            return Ok(true);
        }
    }
}

/// Passes the inside's answer on, as it comes. `gone` is told when the client goes.
pub(crate) fn pass_on(
    inner: &UnixStream,
    client: &mut Client,
    method: Method,
    close: bool,
    gone: &Gone,
) -> io::Result<Passed> {
    let mut reader = BufReader::with_capacity(chunked::BUFFER, inner);
    if !inside_speaks(inner.as_fd(), client.as_fd(), client.hung_up())? {
        gone.set();
        return Ok(Passed::Broken);
    }
    let Some(mut head) = read_head(&mut reader)? else { return Ok(Passed::Nothing) };
    head.close = close;
    let mut to = BufWriter::with_capacity(chunked::BUFFER + 1024, &mut *client);
    to.write_all(head.text().as_bytes())?;
    if method == Method::Head || head.status == 204 {
        to.flush()?;
        return Ok(Passed::Whole);
    }
    match head.body {
        ResponseBody::Length(length) => {
            let copied = io::copy(&mut (&mut reader).take(length), &mut to)?;
            to.flush()?;
            Ok(if copied == length { Passed::Whole } else { Passed::Broken })
        }
        ResponseBody::Chunked => {
            to.flush()?;
            drop(to);
            stream(reader, inner, client, gone)
        }
    }
}

/// Passes chunks on, each as soon as it comes.
fn stream(
    reader: BufReader<&UnixStream>,
    inner: &UnixStream,
    client: &mut Client,
    gone: &Gone,
) -> io::Result<Passed> {
    let mut from = Decoder::new(reader);
    let (watched, hung_up) = (client.as_fd().try_clone_to_owned()?, client.hung_up());
    let mut to = Encoder::new(BufWriter::with_capacity(chunked::BUFFER + 64, client));
    let mut buffer = vec![0; chunked::BUFFER];
    loop {
        if !from.has_ahead() && !inside_speaks(inner.as_fd(), watched.as_fd(), hung_up)? {
            gone.set();
            return Ok(Passed::Broken);
        }
        let read = from.read(&mut buffer)?;
        match buffer.get(..read) {
            Some(data) if !data.is_empty() => to.write_all(data)?,
            _ => {
                to.finish()?;
                return Ok(Passed::Whole);
            }
        }
    }
}

/// Reads the head of the inside; `None` when it closed without one.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<ResponseHead>> {
    let mut limited = reader.take(MAX_INNER_HEAD);
    let mut line = || -> io::Result<Option<String>> {
        let mut text = String::new();
        let read = limited.read_line(&mut text)?;
        Ok((read > 0).then(|| text.trim_end().to_owned()))
    };
    let Some(status) = line()? else { return Ok(None) };
    let odd =
        || io::Error::new(io::ErrorKind::InvalidData, "the inside's answer has no head that can be read");
    let status = status.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(odd)?;
    let (mut content_type, mut body) = (None, ResponseBody::Length(0));
    loop {
        let field = line()?.ok_or_else(odd)?;
        if field.is_empty() {
            return Ok(Some(ResponseHead { status, content_type, body, allow: Vec::new(), close: false }));
        }
        let (name, value) = field.split_once(':').ok_or_else(odd)?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-type" => content_type = Some(value.to_owned()),
            "content-length" => body = ResponseBody::Length(value.parse().map_err(|_| odd())?),
            "transfer-encoding" if value == "chunked" => body = ResponseBody::Chunked,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_is_known_is_passed_on() {
        let mut inside = &b"HTTP/1.1 201 Created\r\nServer: tiny-http (Rust)\r\nDate: x\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nabc"[..];
        let head = read_head(&mut inside).unwrap().unwrap();
        assert_eq!(
            (head.status, head.content_type.as_deref(), head.body),
            (201, Some("text/plain"), ResponseBody::Length(3))
        );
        assert_eq!(inside, b"abc");
        let text = ResponseHead { close: true, ..head }.text();
        assert!(
            text.starts_with("HTTP/1.1 201 Created\r\nDate: ")
                && text.ends_with("Content-Length: 3\r\nConnection: close\r\n\r\n"),
            "{text}"
        );
        assert!(!text.contains("tiny"));
        assert_eq!(read_head(&mut &b""[..]).unwrap(), None);
    }

    #[test]
    fn an_answer_to_wrong_credentials_says_what_would_be_right() {
        let text = ResponseHead {
            status: 401,
            content_type: None,
            body: ResponseBody::Length(0),
            allow: vec![],
            close: false,
        }
        .text();
        assert!(text.contains("\r\nWWW-Authenticate: Bearer\r\n"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read_head(&mut &bytes[..]);
        }
    }
}
