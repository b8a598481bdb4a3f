//! The chunked transfer coding (RFC 9112, 7.1), strictly: no extensions, no trailers, and an end that is not there is an error.

use std::io::{self, BufRead, Read, Write};

/// A good size for buffers around it, in bytes.
pub(crate) const BUFFER: usize = 64 * 1024;

/// Why a body is not chunked as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    /// The size line.
    #[error("a chunk's size is not 1 to 15 hexadecimal digits and CRLF")]
    Size,
    /// What follows the data.
    #[error("a chunk's data is not followed by CRLF")]
    End,
    /// After the last chunk.
    #[error("trailer fields are not taken")]
    Trailer,
}

impl From<ChunkError> for io::Error {
    fn from(error: ChunkError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    Size,
    Data(u64),
    Done,
}

/// Reads the data out of chunks. It reads nothing beyond the last chunk's end.
#[derive(Debug)]
pub(crate) struct Decoder<R> {
    source: R,
    state: State,
}

impl<R: BufRead> Decoder<R> {
    /// Decodes what `source` gives.
    pub(crate) fn new(source: R) -> Self {
        Self { source, state: State::Size }
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut one = [0];
        self.source.read_exact(&mut one).map_err(cut)?;
        Ok(one[0])
    }

    fn crlf(&mut self, error: ChunkError) -> io::Result<()> {
        if self.byte()? == b'\r' && self.byte()? == b'\n' { Ok(()) } else { Err(error.into()) }
    }

    fn size(&mut self) -> io::Result<u64> {
        let mut size = 0;
        for digits in 0..16 {
            match self.byte()? {
                b'\r' if digits > 0 => {
                    return if self.byte()? == b'\n' { Ok(size) } else { Err(ChunkError::Size.into()) };
                }
                byte if digits < 15 => match char::from(byte).to_digit(16) {
                    Some(digit) => size = size << 4 | u64::from(digit),
                    None => return Err(ChunkError::Size.into()),
                },
                _ => break,
            }
        }
        Err(ChunkError::Size.into())
    }
}

fn cut(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before its announced end")
        }
        _ => error,
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.state {
                State::Done => return Ok(0),
                State::Size => {
                    self.state = match self.size()? {
                        0 => {
                            self.crlf(ChunkError::Trailer)?;
                            State::Done
                        }
                        size => State::Data(size),
                    }
                }
                State::Data(left) => {
                    let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
                    if want == 0 {
                        return Ok(0);
                    }
                    let into = buf.get_mut(..want).unwrap_or_default();
                    let got = self.source.read(into)?;
                    if got == 0 {
                        return Err(cut(io::ErrorKind::UnexpectedEof.into()));
                    }
                    let left = left - got as u64;
                    if left == 0 {
                        self.crlf(ChunkError::End)?;
                        self.state = State::Size;
                    } else {
                        self.state = State::Data(left);
                    }
                    return Ok(got);
                }
            }
        }
    }
}

impl<R: Read> Decoder<io::BufReader<R>> {
    /// Whether something has been read ahead, so that a read need not wait for it.
    pub(crate) fn has_ahead(&self) -> bool {
        !self.source.buffer().is_empty()
    }
}

/// Writes data as chunks, each at once.
#[derive(Debug)]
pub(crate) struct Encoder<W>(W);

impl<W: Write> Encoder<W> {
    /// Writes to `to`.
    pub(crate) fn new(to: W) -> Self {
        Self(to)
    }

    /// Writes the last chunk.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.0.write_all(b"0\r\n\r\n")?;
        self.0.flush()
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if !data.is_empty() {
            write!(self.0, "{:x}\r\n", data.len())?;
            self.0.write_all(data)?;
            self.0.write_all(b"\r\n")?;
            self.0.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(raw: &[u8]) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let mut source = raw;
        let mut body = Vec::new();
        Decoder::new(&mut source).read_to_end(&mut body)?;
        Ok((body, source.to_vec()))
    }

    #[test]
    fn what_follows_the_end_is_left_alone() {
        assert_eq!(
            decode(b"3\r\nabc\r\n0A\r\n0123456789\r\n0\r\n\r\nGET /").unwrap(),
            (b"abc0123456789".to_vec(), b"GET /".to_vec())
        );
        assert_eq!(decode(b"0\r\n\r\n").unwrap().0, b"");
    }

    #[test]
    fn odd_chunks_are_refused() {
        for raw in [
            &b""[..],
            b"3",
            b"3\r\n",
            b"3\r\nab",
            b"3\r\nabc",
            b"3\r\nabc\r\n",
            b"3\r\nabc\r\n0\r\n",
            b"\r\nabc",
            b"3\nabc\n0\n\n",
            b"3;x=1\r\nabc\r\n0\r\n\r\n",
            b"3 \r\nabc\r\n0\r\n\r\n",
            b" 3\r\nabc\r\n0\r\n\r\n",
            b"+3\r\nabc\r\n0\r\n\r\n",
            b"0x3\r\nabc\r\n0\r\n\r\n",
            b"-1\r\n",
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"0\r\nTrailer: x\r\n\r\n",
            b"fffffffffffffffff\r\n",
            b"ffffffffffffffff\r\nx",
            b"3\r\nabc\r\n0\r\r\n",
            b"3\rabc",
        ] {
            assert!(decode(raw).is_err(), "{}", String::from_utf8_lossy(raw));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..6), after in prop::collection::vec(any::<u8>(), 0..9)) {
            let mut raw = Vec::new();
            let mut encoder = Encoder::new(&mut raw);
            for piece in &pieces {
                encoder.write_all(piece).unwrap();
            }
            encoder.finish().unwrap();
            raw.extend(&after);
            prop_assert_eq!(decode(&raw).unwrap(), (pieces.concat(), after));
        }

        #[test]
        fn random_bytes_never_panic(raw in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&raw);
        }
    }
}
