//! Requests, replies and event streams over a [`Conn`]: the client's side and the server's.

use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
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

/// How many connections a daemon serves at a time.
const MOST_CONNECTIONS: usize = 256;
/// How long accepting waits where descriptors or memory are short: others may free them, and nothing tells of that.
const SHORT: Duration = Duration::from_millis(250);

/// Serves a daemon's socket for ever: a thread per connection, `handle` once per request. Connections whose peer
/// `admit` declines, and those beyond 256 at a time, are closed without a word. A request that does not parse closes its connection.
pub fn serve<Q, A, R, E, F, P>(listener: &Listener, admit: P, handle: F) -> std::io::Error
where
    Q: DeserializeOwned,
    A: Serialize,
    R: Serialize,
    E: Serialize + 'static,
    F: Fn(Q, Vec<OwnedFd>, PeerIdentity) -> Served<A, R, E> + Send + Sync + 'static,
    P: Fn(PeerIdentity) -> bool,
{
    serve_at_most(MOST_CONNECTIONS, || listener.accept(), admit, handle)
}

fn serve_at_most<Q, A, R, E, F, P>(
    most: usize,
    mut accept: impl FnMut() -> std::io::Result<Conn>,
    admit: P,
    handle: F,
) -> std::io::Error
where
    Q: DeserializeOwned,
    A: Serialize,
    R: Serialize,
    E: Serialize + 'static,
    F: Fn(Q, Vec<OwnedFd>, PeerIdentity) -> Served<A, R, E> + Send + Sync + 'static,
    P: Fn(PeerIdentity) -> bool,
{
    let handle = Arc::new(handle);
    let places = Places::new(most);
    // One line tells of a time without room, whatever comes in it.
    let mut told = false;
    let mut tell = |room: Result<(), String>| match room {
        Ok(()) => told = false,
        Err(why) if !told => {
            told = true;
            log::warn!("control connections are not taken for now: {why}");
        }
        Err(_) => {}
    };
    loop {
        let conn = match accept() {
            Ok(conn) => conn,
            Err(e) => match Fault::of(&e) {
                Fault::Theirs => continue,
                Fault::Short => {
                    tell(Err(e.to_string()));
                    places.wait_left(SHORT);
                    continue;
                }
                Fault::Ours => return e,
            },
        };
        let Ok(peer) = conn.peer() else { continue };
        if !admit(peer) {
            log::warn!("a control connection of uid {} (pid {}) was declined", peer.uid, peer.pid);
            continue;
        }
        let Some(place) = Places::enter(&places) else {
            tell(Err(format!(
                "there are {most} already; uid {} (pid {}) was the first left out",
                peer.uid, peer.pid
            )));
            continue;
        };
        tell(Ok(()));
        let handle = Arc::clone(&handle);
        let spawned = std::thread::Builder::new().name("control".into()).spawn(move || {
            let _place = place;
            converse(conn, peer, &*handle);
        });
        if let Err(e) = spawned {
            log::warn!("no thread for a control connection: {e}");
        }
    }
}

/// What an error of accept(2) means for the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The peer gave up before it was accepted: the next one can be fine.
    Theirs,
    /// There are no descriptors or no memory: the connections that exist go on, and give theirs back when they end.
    Short,
    /// The listener itself is of no use any more.
    Ours,
}

impl Fault {
    fn of(error: &std::io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNABORTED) => Self::Theirs,
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => Self::Short,
            _ => Self::Ours,
        }
    }
}

/// How many connections there are.
#[derive(Debug)]
struct Places {
    counts: Mutex<Counts>,
    most: usize,
    left: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    taken: usize,
    /// How many connections have ended.
    ended: u64,
}

/// One connection's place; dropping it gives it back.
#[derive(Debug)]
struct Place(Arc<Places>);

impl Places {
    fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { counts: Mutex::default(), most, left: Condvar::new() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(places: &Arc<Self>) -> Option<Place> {
        let mut counts = places.counts();
        if counts.taken >= places.most {
            return None;
        }
        counts.taken += 1;
        Some(Place(Arc::clone(places)))
    }

    /// Waits until a connection ends, at most for `time`.
    fn wait_left(&self, time: Duration) {
        let counts = self.counts();
        let before = counts.ended;
        let waited = self.left.wait_timeout_while(counts, time, |now| now.ended == before);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.0.counts();
        counts.taken = counts.taken.saturating_sub(1);
        counts.ended = counts.ended.wrapping_add(1);
        self.0.left.notify_all();
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::io;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;

    type Echo = Client<u32, u32, String>;

    /// Both ends of a connection.
    fn pair() -> (Echo, io::Result<Conn>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Client::over(Conn::from_stream(ours), "the test"), Ok(Conn::from_stream(theirs)))
    }

    fn echo(request: u32, _: Vec<OwnedFd>, _: PeerIdentity) -> Served<u32, String, ()> {
        Served::Answer(request, vec![])
    }

    fn errno(errno: Errno) -> io::Result<Conn> {
        Err(errno.into())
    }

    #[test]
    fn passing_faults_of_accept_do_not_end_the_service() {
        let (mut client, theirs) = pair();
        let mut coming = VecDeque::from([
            errno(Errno::ECONNABORTED),
            errno(Errno::EMFILE),
            errno(Errno::ENFILE),
            errno(Errno::ENOMEM),
            theirs,
            errno(Errno::EBADF),
        ]);
        let end = serve_at_most(1, || coming.pop_front().unwrap(), |_| true, echo);
        assert_eq!(end.raw_os_error(), Some(Errno::EBADF as i32));
        assert_eq!(client.call(&7).unwrap(), 7);
    }

    #[test]
    fn connections_beyond_the_limit_are_closed_and_the_others_go_on() {
        let (say, coming) = channel();
        std::thread::spawn(move || {
            serve_at_most(2, move || coming.recv().unwrap_or_else(|_| errno(Errno::EBADF)), |_| true, echo)
        });
        let mut served: Vec<Echo> = (0..2)
            .map(|n| {
                let (mut client, theirs) = pair();
                say.send(theirs).unwrap();
                assert_eq!(client.call(&n).unwrap(), n);
                client
            })
            .collect();
        let (mut left_out, theirs) = pair();
        say.send(theirs).unwrap();
        assert!(matches!(left_out.call(&9), Err(CallError::Wire { .. })));
        for client in &mut served {
            assert_eq!(client.call(&3).unwrap(), 3);
        }
    }

    #[test]
    fn a_place_comes_back_and_wakes_who_waits_for_it() {
        let places = Places::new(1);
        let place = Places::enter(&places).unwrap();
        assert!(Places::enter(&places).is_none());
        std::thread::scope(|scope| {
            // Returns because the place is given back: nobody waits an hour.
            let waits = scope.spawn(|| places.wait_left(Duration::from_secs(3600)));
            // It may come late; then another place has to end for it.
            let mut place = Some(place);
            while !waits.is_finished() {
                place = match place {
                    Some(_) => None,
                    None => Places::enter(&places),
                };
                std::thread::yield_now();
            }
        });
        assert!(Places::enter(&places).is_some());
    }
}
