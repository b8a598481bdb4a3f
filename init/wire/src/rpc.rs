//! Requests, replies and event streams over a [`Conn`]: the client's side and the server's.

use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Conn, Listener, PeerIdentity, WireError};

/// What a daemon answers: the reply, or its refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply<A, R> {
    /// What was asked for.
    Done(A),
    /// Why it was not done. Nothing changed.
    Refused(R),
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError<R: std::fmt::Display + std::fmt::Debug> {
    /// The daemon could not be reached, or the conversation broke: whether the request was carried out is not known.
    #[error("{daemon} could not be reached")]
    Wire {
        /// The socket's path, or what stands for it.
        daemon: String,
        /// The cause.
        #[source]
        source: WireError,
    },
    /// The daemon refused.
    #[error("{0}")]
    Refused(R),
}

/// A blocking client of one daemon: one connection, one request at a time. `Q` asks, `A` answers, `R` refuses.
#[derive(Debug)]
pub struct Client<Q, A, R> {
    conn: Conn,
    daemon: String,
    words: PhantomData<fn(Q) -> (A, R)>,
}

impl<Q, A, R> Client<Q, A, R>
where
    Q: Serialize,
    A: DeserializeOwned,
    R: DeserializeOwned + std::fmt::Display + std::fmt::Debug,
{
    /// Connects to the daemon's socket.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, CallError<R>> {
        let daemon = path.as_ref().display().to_string();
        match Conn::connect(path) {
            Ok(conn) => Ok(Self { conn, daemon, words: PhantomData }),
            Err(e) => Err(CallError::Wire { daemon, source: e.into() }),
        }
    }

    /// Speaks over a connection that exists already; `daemon` is its name in errors.
    pub fn over(conn: Conn, daemon: impl Into<String>) -> Self {
        Self { conn, daemon: daemon.into(), words: PhantomData }
    }

    /// How long a call waits for its answer; the default waits for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), CallError<R>> {
        let set = self.conn.set_read_timeout(timeout).and_then(|()| self.conn.set_write_timeout(timeout));
        set.map_err(|e| self.broken(e.into()))
    }

    fn broken(&self, source: WireError) -> CallError<R> {
        CallError::Wire { daemon: self.daemon.clone(), source }
    }

    /// Asks, without descriptors either way.
    pub fn call(&mut self, request: &Q) -> Result<A, CallError<R>> {
        self.call_with_fds(request, &[]).map(|(answer, _)| answer)
    }

    /// Asks, with descriptors both ways.
    pub fn call_with_fds(
        &mut self,
        request: &Q,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(A, Vec<OwnedFd>), CallError<R>> {
        self.conn.send(request, fds).map_err(|e| self.broken(e))?;
        match self.conn.recv::<Reply<A, R>>().map_err(|e| self.broken(e))? {
            None => Err(self.broken(WireError::Cut)),
            Some((Reply::Refused(refusal), _)) => Err(CallError::Refused(refusal)),
            Some((Reply::Done(answer), fds)) => Ok((answer, fds)),
        }
    }

    /// Asks for a stream: after the first answer the connection carries events of type `E` only.
    pub fn stream<E: DeserializeOwned>(mut self, request: &Q) -> Result<(A, Events<E>), CallError<R>> {
        let answer = self.call(request)?;
        Ok((answer, Events { conn: self.conn, event: PhantomData }))
    }
}

/// A flow of events from a daemon; it ends when the daemon does.
#[derive(Debug)]
pub struct Events<E> {
    conn: Conn,
    event: PhantomData<fn() -> E>,
}

impl<E: DeserializeOwned> Events<E> {
    /// A second handle, whose [`Conn::shutdown`] ends the flow from another thread.
    pub fn handle(&self) -> std::io::Result<Conn> {
        self.conn.try_clone()
    }

    /// How long [`Iterator::next`] waits; a time-out ends as an error of kind `WouldBlock`.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> std::io::Result<()> {
        self.conn.set_read_timeout(timeout)
    }
}

impl<E: DeserializeOwned> Iterator for Events<E> {
    type Item = Result<E, WireError>;
    fn next(&mut self) -> Option<Self::Item> {
        self.conn.recv().map(|frame| frame.map(|(event, _)| event)).transpose()
    }
}

/// The server's end of an event stream.
#[derive(Debug)]
pub struct Stream<E> {
    conn: Conn,
    event: PhantomData<fn(E)>,
}

impl<E: Serialize> Stream<E> {
    /// Sends one event; an error means that the listener is gone.
    pub fn send(&self, event: &E) -> Result<(), WireError> {
        self.conn.send(event, &[])
    }

    /// Whether the listener is gone: it closed its end, or broke the one-way rule by sending.
    pub fn is_closed(&self) -> bool {
        self.conn.has_input()
    }

    /// How long one send may block on a listener that does not read.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> std::io::Result<()> {
        self.conn.set_write_timeout(timeout)
    }
}

/// What a handler makes of one request.
pub enum Served<A, R, E> {
    /// An answer, perhaps with descriptors.
    Answer(A, Vec<OwnedFd>),
    /// A refusal; nothing changed.
    Refused(R),
    /// An answer after which the connection carries events: the closure is called with the stream, on the connection's thread,
    /// and the connection closes when it returns.
    Stream(A, Box<dyn FnOnce(Stream<E>) + Send>),
}

/// Serves a daemon's socket for ever: a thread per connection, `handle` once per request. Connections whose peer
/// `admit` declines are closed without a word. A request that does not parse closes its connection.
pub fn serve<Q, A, R, E, F, P>(listener: &Listener, admit: P, handle: F) -> std::io::Error
where
    Q: DeserializeOwned,
    A: Serialize,
    R: Serialize,
    E: Serialize + 'static,
    F: Fn(Q, Vec<OwnedFd>, PeerIdentity) -> Served<A, R, E> + Send + Sync + 'static,
    P: Fn(PeerIdentity) -> bool,
{
    let handle = Arc::new(handle);
    loop {
        let conn = match listener.accept() {
            Ok(conn) => conn,
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc_errno::EMFILE | libc_errno::ENFILE | libc_errno::ECONNABORTED)
                ) =>
            {
                // Out of descriptors: the connections that exist go on, and give theirs back when they end.
                log::warn!("a control connection could not be accepted: {e}");
                std::thread::yield_now();
                continue;
            }
            Err(e) => return e,
        };
        let Ok(peer) = conn.peer() else { continue };
        if !admit(peer) {
            log::warn!("a control connection of uid {} (pid {}) was declined", peer.uid, peer.pid);
            continue;
        }
        let handle = Arc::clone(&handle);
        let spawned =
            std::thread::Builder::new().name("control".into()).spawn(move || converse(conn, peer, &*handle));
        if let Err(e) = spawned {
            log::warn!("no thread for a control connection: {e}");
        }
    }
}

mod libc_errno {
    //! accept(2)'s passing faults, by their Linux numbers.
    pub(super) const ENFILE: i32 = 23;
    pub(super) const EMFILE: i32 = 24;
    pub(super) const ECONNABORTED: i32 = 103;
}

fn converse<Q, A, R, E, F>(conn: Conn, peer: PeerIdentity, handle: &F)
where
    Q: DeserializeOwned,
    A: Serialize,
    R: Serialize,
    E: Serialize + 'static,
    F: Fn(Q, Vec<OwnedFd>, PeerIdentity) -> Served<A, R, E>,
{
    loop {
        let (request, fds) = match conn.recv::<Q>() {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(e) => {
                log::warn!(
                    "a control message of uid {} (pid {}) was dropped: {e}: {:?}",
                    peer.uid,
                    peer.pid,
                    std::error::Error::source(&e)
                );
                return;
            }
        };
        let sent = match handle(request, fds, peer) {
            Served::Answer(answer, fds) => {
                let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(std::os::fd::AsFd::as_fd).collect();
                conn.send(&Reply::<A, R>::Done(answer), &borrowed)
            }
            Served::Refused(refusal) => conn.send(&Reply::<A, R>::Refused(refusal), &[]),
            Served::Stream(answer, run) => {
                if conn.send(&Reply::<A, R>::Done(answer), &[]).is_ok() {
                    run(Stream { conn, event: PhantomData });
                }
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}
