//! One connection: sending and receiving frames, and who is at the other end.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg, sockopt};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest JSON body of one frame, in bytes.
pub const MAX_FRAME: usize = 4 << 20;
/// The most descriptors that one frame carries.
pub const MAX_FDS: usize = 64;

/// What can go wrong between two ends of a connection.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer closed the connection in the middle of a frame.
    #[error("the connection was closed in the middle of a message")]
    Cut,
    /// A frame announced more than [`MAX_FRAME`] bytes.
    #[error("a message of {length} bytes is over the limit of {MAX_FRAME}")]
    TooLong {
        /// What was announced, in bytes.
        length: usize,
    },
    /// More than [`MAX_FDS`] descriptors were to be sent, or the kernel had to drop some on the way in.
    #[error("a message carries more descriptors than the limit of {MAX_FDS}")]
    TooManyFds,
    /// The body is not the JSON that was expected.
    #[error("a message is not understood")]
    Json(#[from] serde_json::Error),
}

/// The process at the other end, as the kernel recorded it when the connection was made (SO_PEERCRED, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Process id, as seen in the reader's PID namespace (0 when it is outside).
    pub pid: i32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Conn {
    stream: UnixStream,
}

impl Conn {
    /// Connects to the socket at `path`.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(path)? })
    }

    /// Takes over a connected stream.
    pub fn from_stream(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Gives the stream back, for a conversation that goes on as raw bytes.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// A second handle on the same connection.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()? })
    }

    /// How long one read may wait; `None` waits for ever.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    /// How long one write may wait; `None` waits for ever.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_write_timeout(timeout)
    }

    /// Ends both directions, so that a thread blocked on the other handle returns.
    pub fn shutdown(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Whether a read would return at once: with bytes, with the peer's end, or with an error.
    pub fn has_input(&self) -> bool {
        let mut byte = [0u8; 1];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        !matches!(
            nix::sys::socket::recv(self.stream.as_raw_fd(), &mut byte, flags),
            Err(nix::errno::Errno::EAGAIN)
        )
    }

    /// Who is at the other end.
    pub fn peer(&self) -> io::Result<PeerIdentity> {
        let cred = nix::sys::socket::getsockopt(&self.stream, sockopt::PeerCredentials)?;
        Ok(PeerIdentity { pid: cred.pid(), uid: cred.uid(), gid: cred.gid() })
    }

    /// Sends one frame with descriptors.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        let body = serde_json::to_vec(message)?;
        if body.len() > MAX_FRAME {
            return Err(WireError::TooLong { length: body.len() });
        }
        if fds.len() > MAX_FDS {
            return Err(WireError::TooManyFds);
        }
        let length =
            u32::try_from(body.len()).map_err(|_| WireError::TooLong { length: body.len() })?.to_le_bytes();
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let mut frame = Vec::with_capacity(4 + body.len());
        frame.extend_from_slice(&length);
        frame.extend_from_slice(&body);
        let mut sent = 0;
        while sent < frame.len() {
            // The descriptors go with the first byte; a later part of the same frame must not repeat them.
            let control: &[ControlMessage<'_>] = if sent == 0 && !raw.is_empty() { &rights } else { &[] };
            let part = [IoSlice::new(frame.get(sent..).unwrap_or_default())];
            match sendmsg::<()>(self.stream.as_raw_fd(), &part, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(n) => sent += n,
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(WireError::Io(e.into())),
            }
        }
        Ok(())
    }

    /// Receives one frame and its descriptors; `None` when the peer closed the connection between frames.
    pub fn recv<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
        let mut head = [0u8; 4];
        let mut fds = Vec::new();
        let got = self.recv_first(&mut head, &mut fds)?;
        if got == 0 {
            return Ok(None);
        }
        let mut stream = &self.stream;
        let cut = |e: io::Error| {
            if e.kind() == io::ErrorKind::UnexpectedEof { WireError::Cut } else { WireError::Io(e) }
        };
        stream.read_exact(head.get_mut(got..).unwrap_or_default()).map_err(cut)?;
        let length = u32::from_le_bytes(head) as usize;
        if length > MAX_FRAME {
            return Err(WireError::TooLong { length });
        }
        let mut body = vec![0u8; length];
        stream.read_exact(&mut body).map_err(cut)?;
        Ok(Some((serde_json::from_slice(&body)?, fds)))
    }

    fn recv_first(&self, head: &mut [u8; 4], fds: &mut Vec<OwnedFd>) -> Result<usize, WireError> {
        let mut space = cmsg_space!([RawFd; MAX_FDS]);
        loop {
            let mut part = [IoSliceMut::new(head)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = match recvmsg::<()>(self.stream.as_raw_fd(), &mut part, Some(&mut space), flags) {
                Ok(message) => message,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => return Err(WireError::Io(e.into())),
            };
            for control in message.cmsgs().map_err(|e| WireError::Io(e.into()))? {
                if let ControlMessageOwned::ScmRights(received) = control {
                    fds.extend(received.into_iter().map(crate::sys::own));
                }
            }
            if message.flags.contains(MsgFlags::MSG_CTRUNC) {
                return Err(WireError::TooManyFds);
            }
            return Ok(message.bytes);
        }
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A listening socket at a path.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: Option<PathBuf>,
}

impl Listener {
    /// Binds `path` with mode 0600, replacing a socket that a previous process left there.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(Self { listener, path: Some(path.to_owned()) })
    }

    /// Takes over a socket that listens already (handed in as a descriptor).
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { listener: UnixListener::from(fd), path: None }
    }

    /// Waits for the next connection.
    pub fn accept(&self) -> io::Result<Conn> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(Conn { stream }),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The path it was bound to, if this process bound it.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
