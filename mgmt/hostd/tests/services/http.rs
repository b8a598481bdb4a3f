//! A small HTTP client over the local socket that can also misbehave: cut a body, leave in the middle of a stream.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn read<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The fault's name and the wrong field.
    pub(crate) fn fault(&self) -> (String, String) {
        let json = self.json();
        let text = |key: &str| json.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        (text("fault"), text("field"))
    }
}

pub(crate) fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Percent-encodes what a path cannot hold.
pub(crate) fn encoded(path: &str) -> String {
    path.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-._~/?=&".contains(&b) {
                (b as char).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

pub(crate) fn head(method: &str, path: &str, length: Option<usize>) -> String {
    let length = length.map_or(String::new(), |n| format!("Content-Length: {n}\r\n"));
    format!("{method} /api/v1{} HTTP/1.1\r\nHost: local\r\nConnection: close\r\n{length}\r\n", encoded(path))
}

pub(crate) fn send(socket: &Path, method: &str, path: &str, body: &[u8]) -> Answer {
    let mut stream = connect(socket);
    let length = (method != "GET").then_some(body.len());
    stream.write_all(head(method, path, length).as_bytes()).unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(body);
    answer(&mut BufReader::new(stream))
}

/// Sends a body in chunks, without saying its length first.
pub(crate) fn send_chunked(socket: &Path, method: &str, path: &str, body: &[u8]) -> Answer {
    let mut stream = connect(socket);
    let head = head(method, path, None).replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    for part in body.chunks(64 << 10) {
        let sent = write!(stream, "{:x}\r\n", part.len())
            .and_then(|()| stream.write_all(part))
            .and_then(|()| stream.write_all(b"\r\n"));
        if sent.is_err() {
            break;
        }
    }
    let _ = stream.write_all(b"0\r\n\r\n");
    answer(&mut BufReader::new(stream))
}

/// Reads a head; returns the status, the length and whether the body comes in chunks.
pub(crate) fn answer_head(stream: &mut BufReader<UnixStream>) -> (u16, Option<usize>, bool) {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| panic!("no status line: {line:?}"));
    let (mut length, mut chunked) = (None, false);
    loop {
        line.clear();
        stream.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            return (status, length, chunked);
        }
        let (name, value) = line.split_once(':').unwrap();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok(),
            "transfer-encoding" => chunked = value.trim() == "chunked",
            _ => {}
        }
    }
}

/// One chunk of a body; `None` at its end.
pub(crate) fn chunk(stream: &mut BufReader<UnixStream>) -> Option<Vec<u8>> {
    let mut line = String::new();
    if stream.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let length = usize::from_str_radix(line.trim(), 16).ok()?;
    let mut part = vec![0; length + 2];
    stream.read_exact(&mut part).ok()?;
    part.truncate(length);
    (length > 0).then_some(part)
}

fn answer(stream: &mut BufReader<UnixStream>) -> Answer {
    let (status, length, chunked) = answer_head(stream);
    let mut body = Vec::new();
    if chunked {
        while let Some(part) = chunk(stream) {
            body.extend(part);
        }
    } else if let Some(length) = length {
        body.resize(length, 0);
        stream.read_exact(&mut body).unwrap();
    }
    Answer { status, body }
}
