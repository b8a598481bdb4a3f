//! A request's target in origin form (RFC 9112, 3.2.1): read into decoded segments and a query, and written canonically.

use std::collections::BTreeMap;

/// A target, decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// The path's segments, decoded. None holds a `/` or NUL, none is `.` or `..`.
    pub segments: Vec<String>,
    /// The query, decoded.
    pub query: BTreeMap<String, String>,
}

/// Why a text is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It does not begin with `/`: another form, for proxies, or none at all.
    #[error("the request target must be a path that begins with `/`")]
    NotOriginForm,
    /// A character that may not stand there.
    #[error("the request target holds the byte 0x{0:02x}, which must be percent-encoded")]
    BadByte(u8),
    /// A `%` without two hexadecimal digits.
    #[error("the request target holds a `%` that is not followed by two hexadecimal digits")]
    BadEscape,
    /// Decoded, it is no UTF-8.
    #[error("the request target is, decoded, no UTF-8")]
    NotUtf8,
    /// A segment is `.` or `..`, or hides a `/`, a `\` or a control character.
    #[error("a segment of the request target is `.` or `..`, or hides a slash or a control character")]
    BadSegment,
    /// A query parameter comes twice.
    #[error("the query parameter `{0}` comes twice")]
    Twice(String),
}

impl Target {
    /// Reads a target.
    pub fn parse(text: &[u8]) -> Result<Self, TargetError> {
        let rest = text.strip_prefix(b"/").ok_or(TargetError::NotOriginForm)?;
        let mut halves = rest.splitn(2, |b| *b == b'?');
        let path = halves.next().unwrap_or_default();
        let segments = path.split(|b| *b == b'/').map(segment).collect::<Result<Vec<_>, _>>()?;
        let mut query = BTreeMap::new();
        for pair in halves.next().unwrap_or_default().split(|b| *b == b'&').filter(|p| !p.is_empty()) {
            let mut sides = pair.splitn(2, |b| *b == b'=');
            let name = decode(sides.next().unwrap_or_default(), true)?;
            let value = decode(sides.next().unwrap_or_default(), true)?;
            if query.insert(name.clone(), value).is_some() {
                return Err(TargetError::Twice(name));
            }
        }
        Ok(Self { segments, query })
    }

    /// Writes it with the fewest characters unescaped: what comes out is ours, whatever came in.
    pub fn canonical(&self) -> String {
        let mut text = String::new();
        for segment in &self.segments {
            text.push('/');
            encode(segment, &mut text);
        }
        if text.is_empty() {
            text.push('/');
        }
        for (n, (name, value)) in self.query.iter().enumerate() {
            text.push(if n == 0 { '?' } else { '&' });
            encode(name, &mut text);
            text.push('=');
            encode(value, &mut text);
        }
        text
    }
}

fn segment(raw: &[u8]) -> Result<String, TargetError> {
    let text = decode(raw, false)?;
    let bad = text == "." || text == ".." || text.chars().any(|c| matches!(c, '/' | '\\') || c.is_control());
    if bad { Err(TargetError::BadSegment) } else { Ok(text) }
}

/// `plus` is whether `+` stands for a space, as in a query.
fn decode(raw: &[u8], plus: bool) -> Result<String, TargetError> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.iter().copied();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let (high, low) = (rest.next().and_then(hex), rest.next().and_then(hex));
                let (Some(high), Some(low)) = (high, low) else { return Err(TargetError::BadEscape) };
                bytes.push(high << 4 | low);
            }
            b'+' if plus => bytes.push(b' '),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => bytes.push(byte),
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b','
            | b';' | b'=' | b':' | b'@' => bytes.push(byte),
            b'/' | b'?' if plus => bytes.push(byte),
            other => return Err(TargetError::BadByte(other)),
        }
    }
    String::from_utf8(bytes).map_err(|_| TargetError::NotUtf8)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

fn encode(text: &str, to: &mut String) {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            to.push(char::from(byte));
        } else {
            to.push('%');
            to.push(DIGITS[usize::from(byte >> 4)]);
            to.push(DIGITS[usize::from(byte & 15)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn targets_are_decoded() {
        let target =
            Target::parse(b"/api/v1/datastores/d%201/files/a%2bb+c?path=x%2Fy&max=3+4&flag").unwrap();
        assert_eq!(target.segments, ["api", "v1", "datastores", "d 1", "files", "a+b+c"]);
        assert_eq!(target.query.get("path").map(String::as_str), Some("x/y"));
        assert_eq!(target.query.get("max").map(String::as_str), Some("3 4"));
        assert_eq!(target.query.get("flag").map(String::as_str), Some(""));
    }

    #[test]
    fn tricks_are_refused() {
        for (text, error) in [
            (&b"*"[..], TargetError::NotOriginForm),
            (b"", TargetError::NotOriginForm),
            (b"http://host/", TargetError::NotOriginForm),
            (b"host:443", TargetError::NotOriginForm),
            (b"/a/../b", TargetError::BadSegment),
            (b"/a/%2e%2E/b", TargetError::BadSegment),
            (b"/a%2fb", TargetError::BadSegment),
            (b"/a%5cb", TargetError::BadSegment),
            (b"/a%00b", TargetError::BadSegment),
            (b"/a%0d%0aHost:x", TargetError::BadSegment),
            (b"/a%", TargetError::BadEscape),
            (b"/a%4", TargetError::BadEscape),
            (b"/a%zz", TargetError::BadEscape),
            (b"/%ff", TargetError::NotUtf8),
            (b"/a#b", TargetError::BadByte(b'#')),
            (b"/a\"b", TargetError::BadByte(b'"')),
            (b"/\xc3\xa4", TargetError::BadByte(0xc3)),
            (b"/?a=1&a=2", TargetError::Twice("a".into())),
        ] {
            assert_eq!(Target::parse(text), Err(error), "{}", String::from_utf8_lossy(text));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_and_what_is_read_is_written_back_the_same(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..64),
                "/[a-z%0-9A-F/?&=+.]{0,40}".prop_map(String::into_bytes),
            ],
        ) {
            if let Ok(target) = Target::parse(&bytes) {
                let written = target.canonical();
                prop_assert!(written.bytes().all(|b| b.is_ascii_graphic()));
                prop_assert_eq!(Target::parse(written.as_bytes()), Ok(target));
            }
        }
    }
}
