//! Listening sockets: each accepts in a thread of its own until it is dropped.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keelson_api::{Fault, Problem};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::Front;
use super::connection::{refuse, serve};
use super::open::Open;
use super::wire::Client;

/// A listening socket. Dropping it ends the listening; connections that it has accepted go on.
#[derive(Debug)]
pub struct Listening {
    address: Option<SocketAddr>,
    /// The accepting thread waits for the other end to close.
    _stop: UnixStream,
}

impl Listening {
    /// The address, for a network socket.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

/// Without descriptors, memory or threads accepting has to wait until some are free, which nothing tells.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

fn accept_until_stopped<C>(
    listener: impl AsFd,
    stop: &UnixStream,
    accept: impl Fn() -> io::Result<C>,
    take: impl Fn(C),
) {
    loop {
        let mut fds =
            [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(e) => return log::error!("a listening socket was given up: {e}"),
            Ok(_) => {}
        }
        let [_, stopped] = fds.map(|fd| fd.any().unwrap_or(true));
        if stopped {
            return;
        }
        match accept() {
            Ok(connection) => take(connection),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => match e.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                    log::error!("a connection could not be accepted: {e}");
                    std::thread::sleep(EXHAUSTED_PAUSE);
                }
                // The peer gave up before it was accepted, and its like: the next one can be fine.
                _ => log::debug!("a connection was lost before it was accepted: {e}"),
            },
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(work).map(drop)
}

/// Listens with TLS. What it accepts is added to `open`, where it is to end with its address.
pub(crate) fn tls(front: Arc<Front>, listener: TcpListener, open: Option<Open>) -> io::Result<Listening> {
    listener.set_nonblocking(true)?;
    let address = Some(listener.local_addr()?);
    let (stop, stopped) = UnixStream::pair()?;
    spawn("https", move || {
        accept_until_stopped(
            listener.as_fd(),
            &stopped,
            || listener.accept(),
            |(stream, peer)| take_tls(&front, stream, peer.ip(), open.as_ref()),
        )
    })?;
    Ok(Listening { address, _stop: stop })
}

fn take_tls(front: &Arc<Front>, stream: TcpStream, peer: IpAddr, open: Option<&Open>) {
    let place = match front.connections.enter(Some(peer)) {
        Ok(place) => place,
        // Before TLS there is no way to say it politely.
        Err(full) => return log::debug!("a connection from {peer} was closed: {full}"),
    };
    let stream = Arc::new(stream);
    if let Some(Err(e)) = open.map(|open| open.add(&stream)) {
        return log::debug!("a connection from {peer} was lost: {e}");
    }
    let front = front.clone();
    let started = spawn("https client", move || {
        let _place = place;
        match stream.set_nonblocking(false).and_then(|()| Client::tls(stream, &front.tls)) {
            Ok(client) => serve(client, Some(peer), &front.shared),
            Err(e) => log::debug!("no TLS with {peer}: {e}"),
        }
    });
    if let Err(e) = started {
        log::error!("a connection from {peer} was closed: no thread for it: {e}");
    }
}

/// Listens on the local socket.
pub(crate) fn local(front: Arc<Front>, path: &Path) -> io::Result<Listening> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // What a killed hostd left behind. A hostd that lives is never joined by a second: init sees to that.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Who connects is decided by uid; the mode only keeps others from trying. The group is hostd's, which the console has.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    let (stop, stopped) = UnixStream::pair()?;
    spawn("local", move || {
        accept_until_stopped(
            listener.as_fd(),
            &stopped,
            || listener.accept(),
            |(stream, _)| take_local(&front, stream),
        )
    })?;
    Ok(Listening { address: None, _stop: stop })
}

/// Whether the other end is root, or hostd's own user, which could do all that hostd does anyway.
fn is_root(peer: BorrowedFd<'_>) -> bool {
    getsockopt(&peer, PeerCredentials)
        .is_ok_and(|who| who.uid() == 0 || who.uid() == nix::unistd::geteuid().as_raw())
}

fn take_local(front: &Arc<Front>, stream: UnixStream) {
    let place = match front.connections.enter(None) {
        Ok(place) => place,
        Err(full) => return log::warn!("a local connection was closed: {full}"),
    };
    let front = front.clone();
    let started = spawn("local client", move || {
        let _place = place;
        let root = is_root(stream.as_fd());
        let client = match stream.set_nonblocking(false).and_then(|()| Client::plain(stream)) {
            Ok(client) => client,
            Err(e) => return log::debug!("a local connection was lost: {e}"),
        };
        if root {
            serve(client, None, &front.shared);
        } else {
            refuse(
                client,
                &Problem::new(Fault::NoPermission, "the local socket serves root only")
                    .remedy("use HTTPS and log in"),
            );
        }
    });
    if let Err(e) = started {
        log::error!("a local connection was closed: no thread for it: {e}");
    }
}
