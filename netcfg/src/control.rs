//! The control socket: requests go to the daemon's loop and wait for its answer; watchers read what it publishes and never hold it up.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use keelson_init_control::HOSTD_UID;
use keelson_netcfg_control::{Answer, Event, NetworkConfig, NetworkStatus, Refusal, Request};
use keelson_wire::{Listener, Served, Stream, serve};
use tokio::sync::{mpsc, oneshot};

/// What the daemon answers: with a descriptor, for a tap.
pub(crate) type Outcome = Result<(Answer, Option<OwnedFd>), Refusal>;

/// One request on its way to the daemon.
pub(crate) struct Ask {
    pub(crate) request: Request,
    pub(crate) reply: oneshot::Sender<Outcome>,
}

/// A watcher that has heard nothing for this long gets the state again: so one that is gone is noticed.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// A watcher that does not read for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the daemon publishes.
#[derive(Debug, Default)]
pub(crate) struct Published {
    latest: Mutex<Latest>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Latest {
    number: u64,
    at: Option<Instant>,
    state: Option<Arc<(NetworkConfig, NetworkStatus)>>,
}

impl Published {
    /// Publishes a state, unless nothing but the remaining lease times changed.
    pub(crate) fn publish(&self, config: &NetworkConfig, status: &NetworkStatus) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let same =
            latest.state.as_ref().is_some_and(|s| s.0 == *config && timeless(&s.1) == timeless(status));
        if !same {
            latest.number += 1;
            latest.at = Some(Instant::now());
            latest.state = Some(Arc::new((config.clone(), status.clone())));
            self.changed.notify_all();
        }
    }

    /// Waits for a state newer than `seen`, or the same one when it has been quiet for long.
    fn next(&self, seen: u64) -> (u64, Event) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let until = Instant::now() + AT_LEAST_EVERY;
        loop {
            let now = Instant::now();
            if let Some(state) = latest.state.as_ref().filter(|_| latest.number > seen || now >= until) {
                let mut status = state.1.clone();
                let age = latest.at.map_or(0, |at| now.saturating_duration_since(at).as_secs());
                for dhcp in status.vmkernel_adapters.iter_mut().filter_map(|a| a.dhcp.as_mut()) {
                    dhcp.lease_left_s = dhcp.lease_left_s.map(|s| s.saturating_sub(age));
                }
                return (
                    latest.number,
                    Event::Changed { config: Box::new(state.0.clone()), status: Box::new(status) },
                );
            }
            let wait = until.saturating_duration_since(now).max(Duration::from_millis(1));
            latest = self.changed.wait_timeout(latest, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn timeless(status: &NetworkStatus) -> NetworkStatus {
    let mut status = status.clone();
    for dhcp in status.vmkernel_adapters.iter_mut().filter_map(|a| a.dhcp.as_mut()) {
        dhcp.lease_left_s = None;
    }
    status
}

/// Binds the socket, for root and the host agent's user.
pub(crate) fn bind(path: &Path) -> std::io::Result<Listener> {
    let listener = Listener::bind(path)?;
    // The mode is 0600 and root may anyway: so the owner is hostd. A light host without that user id in its namespace goes on.
    if let Err(e) = std::os::unix::fs::chown(path, Some(HOSTD_UID), None) {
        log::warn!("{} could not be given to uid {HOSTD_UID}: {e}; only root can ask netd", path.display());
    }
    Ok(listener)
}

/// Serves for ever; returns only when the socket fails.
pub(crate) fn run(
    listener: &Listener,
    asks: mpsc::UnboundedSender<Ask>,
    published: Arc<Published>,
) -> std::io::Error {
    let admit = |peer: keelson_wire::PeerIdentity| peer.uid == 0 || peer.uid == HOSTD_UID;
    serve(listener, admit, move |request: Request, _fds, _peer| -> Served<Answer, Refusal, Event> {
        if request == Request::Watch {
            let published = Arc::clone(&published);
            return Served::Stream(
                Answer::Done,
                Box::new(move |stream: Stream<Event>| watch(&stream, &published)),
            );
        }
        let gone = || Refusal::Failed { what: "the request".into(), why: "netd is ending".into() };
        let (reply, answer) = oneshot::channel();
        if asks.send(Ask { request, reply }).is_err() {
            return Served::Refused(gone());
        }
        match answer.blocking_recv() {
            Ok(Ok((answer, fd))) => Served::Answer(answer, fd.into_iter().collect()),
            Ok(Err(refusal)) => Served::Refused(refusal),
            Err(_) => Served::Refused(gone()),
        }
    })
}

fn watch(stream: &Stream<Event>, published: &Published) {
    if stream.set_timeout(Some(PATIENCE)).is_err() {
        return;
    }
    let mut seen = 0;
    loop {
        let (number, event) = published.next(seen);
        seen = number;
        if stream.send(&event).is_err() {
            return;
        }
    }
}
