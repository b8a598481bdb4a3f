//! A client's connection: TLS or plain, with a time limit on every read and write.

use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::{ServerConnection, StreamOwned};

use super::limits::{HANDSHAKE_TIME, STALL_TIME};

/// A socket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// Shared with the list of those that end when their address is no longer served.
    Tcp(Arc<TcpStream>),
    Unix(UnixStream),
}

/// A socket whose reads end at a time.
#[derive(Debug)]
pub(crate) struct Timed {
    socket: Socket,
    /// How long one read may wait.
    stall: Duration,
    /// When all reads together must be done.
    until: Option<Instant>,
}

/// Waits until `fd` can do one of `events` (or has hung up), at most `time`; what it can do, empty after the time.
pub(crate) fn wait_for(fd: BorrowedFd<'_>, events: PollFlags, time: Duration) -> io::Result<PollFlags> {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(fd, events)];
        // Rounded up, so that the last millisecond is not spun away.
        let millis = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, millis) {
            Ok(0) if left.is_zero() || millis == PollTimeout::ZERO => return Ok(PollFlags::empty()),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(fds.iter().map(happened).fold(PollFlags::empty(), |a, b| a | b)),
            Err(e) => return Err(e.into()),
        }
    }
}

/// What a descriptor can do. nix does not know POLLRDHUP and gives nothing where that is set.
pub(crate) fn happened(fd: &PollFd<'_>) -> PollFlags {
    fd.revents().unwrap_or(PollFlags::POLLHUP)
}

impl Timed {
    fn ready(&self) -> io::Result<()> {
        let left = self
            .until
            .map_or(self.stall, |until| until.saturating_duration_since(Instant::now()).min(self.stall));
        if wait_for(self.as_fd(), PollFlags::POLLIN, left)?.is_empty() {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            Ok(())
        }
    }
}

impl AsFd for Timed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(s) => s.as_fd(),
            Socket::Unix(s) => s.as_fd(),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.ready()?;
        match &mut self.socket {
            Socket::Tcp(s) => s.as_ref().read(buf),
            Socket::Unix(s) => s.read(buf),
        }
    }
}

/// A write's time limit is the socket's own, and ends as "would block".
fn slow(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Write for Timed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.socket {
            Socket::Tcp(s) => s.as_ref().write(buf),
            Socket::Unix(s) => s.write(buf),
        }
        .map_err(slow)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Stream {
    Plain(Timed),
    Tls(Box<StreamOwned<ServerConnection, Timed>>),
}

/// A client's connection, with what has been read ahead of it.
pub(crate) struct Client {
    stream: Stream,
    buffer: Vec<u8>,
    start: usize,
}

impl Client {
    /// A connection over the local socket.
    pub(crate) fn plain(socket: UnixStream) -> io::Result<Self> {
        socket.set_write_timeout(Some(STALL_TIME))?;
        let timed = Timed { socket: Socket::Unix(socket), stall: STALL_TIME, until: None };
        Ok(Self { stream: Stream::Plain(timed), buffer: Vec::new(), start: 0 })
    }

    /// A network connection: does the TLS handshake.
    pub(crate) fn tls(socket: Arc<TcpStream>, config: &Arc<rustls::ServerConfig>) -> io::Result<Self> {
        socket.set_write_timeout(Some(STALL_TIME))?;
        socket.set_nodelay(true)?;
        let mut timed = Timed {
            socket: Socket::Tcp(socket),
            stall: HANDSHAKE_TIME,
            until: Some(Instant::now() + HANDSHAKE_TIME),
        };
        let mut tls = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut timed)?;
        }
        Ok(Self { stream: Stream::Tls(Box::new(StreamOwned::new(tls, timed))), buffer: Vec::new(), start: 0 })
    }

    fn timed(&mut self) -> &mut Timed {
        match &mut self.stream {
            Stream::Plain(timed) => timed,
            Stream::Tls(tls) => &mut tls.sock,
        }
    }

    /// Limits the reads from now on: each to `stall`, all to `all`.
    pub(crate) fn limit(&mut self, stall: Duration, all: Option<Duration>) {
        let until = all.map(|all| Instant::now() + all);
        let timed = self.timed();
        timed.stall = stall;
        timed.until = until;
    }

    /// What says that the client has gone. Over TCP that is the end of what it sends: whoever closes sends no more than that. A Unix
    /// socket tells a client that has only finished sending from one that has gone, so there the former still gets its answer.
    pub(crate) fn hung_up(&self) -> PollFlags {
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        match &self.stream {
            Stream::Plain(_) => gone,
            Stream::Tls(_) => gone | PollFlags::from_bits_retain(nix::libc::POLLRDHUP),
        }
    }

    /// What has been read ahead.
    pub(crate) fn ahead(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// Reads more ahead; false at the end.
    pub(crate) fn read_ahead(&mut self) -> io::Result<bool> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let filled = self.buffer.len();
        self.buffer.resize(filled + 16 * 1024, 0);
        let into = self.buffer.get_mut(filled..).unwrap_or_default();
        let read = match &mut self.stream {
            Stream::Plain(timed) => timed.read(into),
            Stream::Tls(tls) => tls.read(into),
        };
        self.buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
        read.map(|n| n > 0)
    }

    /// Says goodbye and closes. With `linger` it goes on reading for that long, so that an answer that comes before the end of the
    /// request is not lost to a reset.
    pub(crate) fn close(mut self, linger: Duration) {
        if let Stream::Tls(tls) = &mut self.stream {
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
        let timed = self.timed();
        let shut = match &timed.socket {
            Socket::Tcp(s) => s.shutdown(Shutdown::Write),
            Socket::Unix(s) => s.shutdown(Shutdown::Write),
        };
        if shut.is_ok() && !linger.is_zero() {
            timed.stall = linger;
            timed.until = Some(Instant::now() + linger);
            let mut waste = [0; 4096];
            while matches!(timed.read(&mut waste), Ok(n) if n > 0) {}
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Plain(timed) => timed.as_fd(),
            Stream::Tls(tls) => tls.sock.as_fd(),
        }
    }
}

impl Read for Client {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let ahead = self.fill_buf()?;
        let n = ahead.len().min(buf.len());
        if let (Some(from), Some(to)) = (ahead.get(..n), buf.get_mut(..n)) {
            to.copy_from_slice(from);
        }
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Client {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.ahead().is_empty() {
            self.read_ahead()?;
        }
        Ok(self.ahead())
    }

    fn consume(&mut self, amount: usize) {
        self.start = (self.start + amount).min(self.buffer.len());
    }
}

impl Write for Client {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Plain(timed) => timed.write(buf),
            Stream::Tls(tls) => tls.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(timed) => timed.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}
