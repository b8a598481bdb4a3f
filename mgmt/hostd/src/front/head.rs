//! A request's head, read strictly (RFC 9112), and written anew: no byte of a client's head goes further than this.
//!
//! Strict means that whatever two readers could take in two ways is refused: two lengths, a length beside a transfer coding, any
//! coding but exactly `chunked`, folded lines, line ends other than CRLF, spaces where none belong. After a refusal the connection
//! is closed, since nobody knows where the next request would begin.

use crate::http::{Method, Target, TargetError};

/// The largest head, in bytes.
pub(crate) const MAX_HEAD: usize = 16 * 1024;
/// The longest request line, in bytes.
const MAX_LINE: usize = 8 * 1024;
/// How many fields a head may have.
const MAX_FIELDS: usize = 64;
/// The longest length that is believed: 15 decimal digits, under a petabyte.
const MAX_LENGTH_DIGITS: usize = 15;

/// What of a head is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) body: Framing,
    /// The token of `Authorization: Bearer`.
    pub(crate) authorization: Authorization,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub(crate) expects_continue: bool,
    /// Whether the client closes after this request.
    pub(crate) close: bool,
}

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    None,
    /// It has this many bytes.
    Length(u64),
    /// It comes in chunks.
    Chunked,
}

/// The field `Authorization`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Authorization {
    Missing,
    Bearer(String),
    /// Another scheme, or no token at all.
    Other,
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Missing => "Missing",
            Self::Bearer(_) => "Bearer(…)",
            Self::Other => "Other",
        })
    }
}

/// Why a head is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("a line of the head does not end with CRLF, or holds a lone CR")]
    LineEnd,
    #[error("the head holds a NUL or another control character")]
    Control,
    #[error(
        "the head is larger than {MAX_HEAD} bytes, its first line longer than {MAX_LINE}, or it has more than {MAX_FIELDS} fields"
    )]
    TooLarge,
    #[error("the request line is not METHOD, one space, PATH, one space, HTTP/1.1")]
    RequestLine,
    #[error("only HTTP/1.1 is spoken here")]
    Version,
    #[error("the method is not known here")]
    UnknownMethod,
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("a field name is empty, not a token, or has a space before the colon")]
    FieldName,
    #[error("a field is folded over two lines")]
    Folded,
    #[error("the field {0} comes more than once")]
    Twice(&'static str),
    #[error("the field Host is missing")]
    NoHost,
    #[error("the field Host is no host name or address with an optional port")]
    BadHost,
    #[error("the field Content-Length is not one decimal number")]
    Length,
    #[error("the field Transfer-Encoding is not exactly `chunked`")]
    Coding,
    #[error("Content-Length and Transfer-Encoding come together")]
    TwoFramings,
    #[error("the field Expect is not 100-continue")]
    Expect,
    #[error("a {0} request takes no body")]
    NoBodyHere(Method),
}

/// How far a head has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// Its end, the empty line, is before this index.
    Whole(usize),
    /// More must come.
    Partly,
}

/// Looks for the end of the head at the start of `bytes`. What is wrong for sure is refused without waiting for more.
pub(crate) fn find_end(bytes: &[u8]) -> Result<Arrived, HeadError> {
    let mut line_start = 0;
    let mut before = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if at >= MAX_HEAD {
            return Err(HeadError::TooLarge);
        }
        match (before, byte) {
            (b'\r', b'\n') if at == line_start + 1 => return Ok(Arrived::Whole(at + 1)),
            (b'\r', b'\n') => line_start = at + 1,
            (b'\r', _) | (_, b'\n') => return Err(HeadError::LineEnd),
            (_, b'\r' | b'\t') => {}
            (_, control) if control < b' ' || control == 0x7f => return Err(HeadError::Control),
            _ => {}
        }
        if line_start == 0 && at >= MAX_LINE {
            return Err(HeadError::TooLarge);
        }
        before = byte;
    }
    Ok(Arrived::Partly)
}

impl Head {
    /// Reads a whole head, its empty line included.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, HeadError> {
        if find_end(bytes)? != Arrived::Whole(bytes.len()) {
            return Err(HeadError::LineEnd);
        }
        // find_end has seen to it that CR and LF occur only together.
        let mut lines = bytes.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let (method, target) = request_line(lines.next().unwrap_or_default())?;
        let fields = Fields::read(lines)?;
        let body = fields.framing()?;
        if body != Framing::None
            && body != Framing::Length(0)
            && matches!(method, Method::Get | Method::Head | Method::Delete)
        {
            return Err(HeadError::NoBodyHere(method));
        }
        match fields.host {
            None => return Err(HeadError::NoHost),
            Some(host) if !is_host(host) => return Err(HeadError::BadHost),
            Some(_) => {}
        }
        let expects_continue = match fields.expect {
            None => false,
            Some(value) if value.eq_ignore_ascii_case(b"100-continue") => true,
            Some(_) => return Err(HeadError::Expect),
        };
        Ok(Self {
            method,
            target,
            body,
            authorization: fields.authorization(),
            expects_continue,
            close: fields.close,
        })
    }

    /// The head for the inside: the method, the target written canonically, and fields of ours alone. A body goes inside in chunks
    /// whatever framing it came in. `ticket` is the inside's word for this request.
    pub(crate) fn canonical(&self, ticket: &str) -> String {
        format!(
            "{} {} HTTP/1.1\r\nHost: hostd\r\nConnection: upgrade\r\n{}: {ticket}\r\n\r\n",
            self.method,
            self.target.canonical(),
            crate::http::TICKET_HEADER
        )
    }
}

fn request_line(line: &[u8]) -> Result<(Method, Target), HeadError> {
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(HeadError::RequestLine);
    };
    if method.is_empty() || !method.iter().copied().all(is_token) || target.is_empty() {
        return Err(HeadError::RequestLine);
    }
    match version {
        b"HTTP/1.1" => {}
        other if other.starts_with(b"HTTP/") => return Err(HeadError::Version),
        _ => return Err(HeadError::RequestLine),
    }
    let target = Target::parse(target)?;
    let method = std::str::from_utf8(method).ok().and_then(Method::parse).ok_or(HeadError::UnknownMethod)?;
    Ok((method, target))
}

/// The fields that are used, raw.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    length: Option<&'a [u8]>,
    coding: Option<&'a [u8]>,
    authorization: Option<&'a [u8]>,
    expect: Option<&'a [u8]>,
    content_type: Option<&'a [u8]>,
    close: bool,
}

impl<'a> Fields<'a> {
    fn read(lines: impl Iterator<Item = &'a [u8]>) -> Result<Self, HeadError> {
        let mut fields = Self::default();
        for (number, line) in lines.take_while(|line| !line.is_empty()).enumerate() {
            if number >= MAX_FIELDS {
                return Err(HeadError::TooLarge);
            }
            if matches!(line.first(), Some(b' ' | b'\t')) {
                return Err(HeadError::Folded);
            }
            let colon = line.iter().position(|b| *b == b':').ok_or(HeadError::FieldName)?;
            let (name, value) = line.split_at(colon);
            if name.is_empty() || !name.iter().copied().all(is_token) {
                return Err(HeadError::FieldName);
            }
            fields.take(name, trim(value.get(1..).unwrap_or_default()))?;
        }
        Ok(fields)
    }

    fn take(&mut self, name: &[u8], value: &'a [u8]) -> Result<(), HeadError> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let (place, known) = if is("host") {
            (&mut self.host, "Host")
        } else if is("content-length") {
            (&mut self.length, "Content-Length")
        } else if is("transfer-encoding") {
            (&mut self.coding, "Transfer-Encoding")
        } else if is("authorization") {
            (&mut self.authorization, "Authorization")
        } else if is("expect") {
            (&mut self.expect, "Expect")
        } else if is("content-type") {
            (&mut self.content_type, "Content-Type")
        } else {
            if is("connection") {
                self.close |=
                    value.split(|b| *b == b',').any(|option| trim(option).eq_ignore_ascii_case(b"close"));
            }
            return Ok(());
        };
        match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(HeadError::Twice(known)),
        }
    }

    fn framing(&self) -> Result<Framing, HeadError> {
        match (self.length, self.coding) {
            (Some(_), Some(_)) => Err(HeadError::TwoFramings),
            (None, None) => Ok(Framing::None),
            (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
            (None, Some(_)) => Err(HeadError::Coding),
            (Some(digits), None) => {
                if digits.is_empty()
                    || digits.len() > MAX_LENGTH_DIGITS
                    || !digits.iter().all(u8::is_ascii_digit)
                {
                    return Err(HeadError::Length);
                }
                std::str::from_utf8(digits)
                    .ok()
                    .and_then(|d| d.parse().ok())
                    .map(Framing::Length)
                    .ok_or(HeadError::Length)
            }
        }
    }

    fn authorization(&self) -> Authorization {
        let Some(value) = self.authorization else { return Authorization::Missing };
        let text = std::str::from_utf8(value).unwrap_or_default();
        match text.split_once(' ') {
            Some((scheme, token))
                if scheme.eq_ignore_ascii_case("bearer")
                    && !token.is_empty()
                    && token.bytes().all(|b| b.is_ascii_graphic()) =>
            {
                Authorization::Bearer(token.to_owned())
            }
            _ => Authorization::Other,
        }
    }
}

/// `tchar` of RFC 9110, 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Whether this can be `uri-host [":" port]`. Which host it names does not matter: there is one.
fn is_host(value: &[u8]) -> bool {
    let (name, port) = match value.iter().rposition(|b| *b == b':') {
        Some(colon) if !value.ends_with(b"]") => value.split_at(colon),
        _ => (value, &b":"[..]),
    };
    let inside = name.strip_prefix(b"[").and_then(|n| n.strip_suffix(b"]"));
    let name_fits = match inside {
        Some(v6) => !v6.is_empty() && v6.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')),
        None => {
            !name.is_empty()
                && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        }
    };
    name_fits && port.len() <= 6 && port.iter().skip(1).all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Head, HeadError> {
        Head::parse(text.as_bytes())
    }

    #[test]
    fn a_plain_request_is_read() {
        let head = parse("PUT /api/v1/x?a=b HTTP/1.1\r\nhost: h:443\r\nTRANSFER-ENCODING:\t Chunked \r\nAuthorization: bearer abc\r\nExpect: 100-Continue\r\nConnection: foo, Close\r\nUser-Agent: xä\r\n\r\n").unwrap();
        assert_eq!(
            (head.method, head.body, head.expects_continue, head.close),
            (Method::Put, Framing::Chunked, true, true)
        );
        assert_eq!(head.authorization, Authorization::Bearer("abc".into()));
        assert_eq!(
            head.canonical("w"),
            "PUT /api/v1/x?a=b HTTP/1.1\r\nHost: hostd\r\nConnection: upgrade\r\nx-keelson-ticket: w\r\n\r\n"
        );
        assert_eq!(
            parse("POST / HTTP/1.1\r\nHost: [::1]:8443\r\nContent-Length: 007\r\n\r\n").unwrap().body,
            Framing::Length(7)
        );
    }

    /// The smuggling cases of CVE-2026-66752 and their relatives.
    #[test]
    fn whatever_can_be_read_in_two_ways_is_refused() {
        use HeadError::*;
        let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let line = |line: &str| format!("{line}\r\nHost: h\r\n\r\n");
        let cases: Vec<(String, HeadError)> = vec![
            (post("Content-Length: 5\r\nContent-Length: 5\r\n"), Twice("Content-Length")),
            (post("Content-Length: 5\r\nContent-Length: 6\r\n"), Twice("Content-Length")),
            (post("Content-Length: 5, 5\r\n"), Length),
            (post("Content-Length: +5\r\n"), Length),
            (post("Content-Length: -5\r\n"), Length),
            (post("Content-Length: 0x5\r\n"), Length),
            (post("Content-Length: 5 5\r\n"), Length),
            (post("Content-Length: 5a\r\n"), Length),
            (post("Content-Length:\r\n"), Length),
            (post("Content-Length: 99999999999999999999\r\n"), Length),
            (post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), TwoFramings),
            (post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), TwoFramings),
            (post("Transfer-Encoding: identity\r\nContent-Length: 5\r\n"), TwoFramings),
            (
                post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
                Twice("Transfer-Encoding"),
            ),
            (
                post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
                Twice("Transfer-Encoding"),
            ),
            (post("Transfer-Encoding: identity\r\n"), Coding),
            (post("Transfer-Encoding: gzip, chunked\r\n"), Coding),
            (post("Transfer-Encoding: chunked, identity\r\n"), Coding),
            (post("Transfer-Encoding: chunked, chunked\r\n"), Coding),
            (post("Transfer-Encoding: xchunked\r\n"), Coding),
            (post("Transfer-Encoding: \"chunked\"\r\n"), Coding),
            (post("Transfer-Encoding: chunked;q=1\r\n"), Coding),
            (post("Transfer-Encoding:\r\n"), Coding),
            (post("Transfer-Encoding: \x0bchunked\r\n"), Control),
            (post("Transfer-Encoding\x00: chunked\r\n"), Control),
            (post("Transfer-Encoding : chunked\r\n"), FieldName),
            (post("Transfer Encoding: chunked\r\n"), FieldName),
            (post("Content-Length\t: 5\r\n"), FieldName),
            (post(": x\r\n"), FieldName),
            (post("NoColon\r\n"), FieldName),
            (post("X: a\r\n folded\r\n"), Folded),
            (post("X: a\r\n\tfolded\r\n"), Folded),
            (post(" Content-Length: 5\r\n"), Folded),
            (post("Transfer-Encoding:\r\n chunked\r\n"), Folded),
            (post("X: a\nContent-Length: 5\r\n"), LineEnd),
            (post("X: a\rContent-Length: 5\r\n"), LineEnd),
            (post("X: a\r\r\n"), LineEnd),
            (post("X: a\n\r\n"), LineEnd),
            (post("X: a\x00b\r\n"), Control),
            (post("X: a\x7fb\r\n"), Control),
            (post("Host: h\r\n"), Twice("Host")),
            (post("Host: other\r\n"), Twice("Host")),
            (post("Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"), Twice("Authorization")),
            (post("Expect: 200-ok\r\n"), Expect),
            ("POST / HTTP/1.1\r\n\r\n".into(), NoHost),
            ("POST / HTTP/1.1\r\nHost:\r\n\r\n".into(), BadHost),
            ("POST / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), BadHost),
            ("POST / HTTP/1.1\r\nHost: a/b\r\n\r\n".into(), BadHost),
            ("POST / HTTP/1.1\r\nHost: user@a\r\n\r\n".into(), BadHost),
            ("GET / HTTP/1.1\nHost: h\n\n".into(), LineEnd),
            ("\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".into(), LineEnd),
            (line("GET /  HTTP/1.1"), RequestLine),
            (line(" GET / HTTP/1.1"), RequestLine),
            (line("GET\t/ HTTP/1.1"), RequestLine),
            (line("GET / HTTP/1.1 "), RequestLine),
            (line("GET /a b HTTP/1.1"), RequestLine),
            (line("GET /"), RequestLine),
            (line("G(T / HTTP/1.1"), RequestLine),
            (line("GET / http/1.1"), RequestLine),
            (line("GET / HTTP/1.0"), Version),
            (line("GET / HTTP/2.0"), Version),
            (line("GET / HTTP/1.10"), Version),
            (line("BREW / HTTP/1.1"), UnknownMethod),
            (line("get / HTTP/1.1"), UnknownMethod),
            (line("GET http://h/ HTTP/1.1"), Target(TargetError::NotOriginForm)),
            (line("CONNECT h:443 HTTP/1.1"), Target(TargetError::NotOriginForm)),
            (line("OPTIONS * HTTP/1.1"), Target(TargetError::NotOriginForm)),
            ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n".into(), NoBodyHere(Method::Get)),
            (
                "DELETE / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
                NoBodyHere(Method::Delete),
            ),
            (post(&format!("X: {}\r\n", "a".repeat(MAX_HEAD))), TooLarge),
            (post(&"X: a\r\n".repeat(MAX_FIELDS)), TooLarge),
            (line(&format!("GET /{} HTTP/1.1", "a".repeat(MAX_LINE))), TooLarge),
        ];
        for (text, error) in cases {
            assert_eq!(parse(&text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn the_end_is_found_however_the_head_arrives_and_nothing_after_it_is_touched() {
        let text = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(find_end(&text[..cut]), Ok(Arrived::Partly), "{cut}");
        }
        assert_eq!(find_end(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n\x00\nbody"), Ok(Arrived::Whole(text.len())));
        assert_eq!(
            find_end(&vec![b'a'; MAX_LINE + 1]),
            Err(HeadError::TooLarge),
            "a line without an end is not waited for"
        );
    }

    fn almost_a_head() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just("GET /a%20b?c=d HTTP/1.1".to_owned()),
            Just("POST /x HTTP/1.1".to_owned()),
            "[A-Z]{1,4} /[a-z%0-9]{0,6} HTTP/1.[01]"
        ];
        let field = prop_oneof![
            Just("Host: h".to_owned()),
            Just("Content-Length: 3".to_owned()),
            Just("Transfer-Encoding: chunked".to_owned()),
            Just("Connection: close".to_owned()),
            Just("Authorization: Bearer x".to_owned()),
            "[A-Za-z-]{1,12}:[ -~\t]{0,12}",
            "[ -~]{0,12}",
        ];
        let end = prop_oneof![9 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r")];
        (line, prop::collection::vec((field, end), 0..6)).prop_map(|(line, fields)| {
            let fields: String = fields.into_iter().map(|(field, end)| field + end).collect();
            format!("{line}\r\nHost: h\r\n{fields}\r\n").into_bytes()
        })
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = find_end(&bytes);
            let _ = Head::parse(&bytes);
        }

        #[test]
        fn an_accepted_head_is_written_anew_with_the_same_meaning(bytes in almost_a_head()) {
            if let Ok(head) = Head::parse(&bytes) {
                let written = head.canonical("0123abcd");
                prop_assert!(written.bytes().all(|b| b.is_ascii_graphic() || b" \r\n".contains(&b)));
                let again = Head::parse(written.as_bytes()).unwrap();
                prop_assert_eq!((again.method, again.target), (head.method, head.target));
                prop_assert_eq!(again.body, Framing::None, "the inside never frames a body by the head");
            }
        }
    }
}
