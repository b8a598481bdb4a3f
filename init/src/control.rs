//! What clients of init's socket may ask, and what is answered.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use keelson_init_control::{Answer, Event, HOSTD_UID, Refusal, Request, SOCKET, UnitId};
use keelson_wire::{Listener, PeerIdentity, Served, Stream};

use crate::host::Host;
use crate::journal;
use crate::power;
use crate::unit::Then;

type Outcome = Served<Answer, Refusal, Event>;

/// How long one event may wait for a watcher to read it.
const SLOW_WATCHER: Duration = Duration::from_secs(10);
/// How often a watcher that hears nothing is looked at: whether it is still there.
const QUIET_WATCHER: Duration = Duration::from_secs(5);
/// The longest deadline that is taken, one day: it keeps sums of times within their types.
const LONGEST_DEADLINE_MS: u64 = 86_400_000;

/// Opens the socket and serves it on threads of its own.
pub(crate) fn serve(host: &Arc<Host>) -> std::io::Result<()> {
    let listener = Listener::bind(SOCKET)?;
    // hostd is not root: it connects by its group. Who is admitted is decided by the peer's identity.
    std::os::unix::fs::chown(SOCKET, Some(0), Some(HOSTD_UID))?;
    std::fs::set_permissions(SOCKET, std::os::unix::fs::PermissionsExt::from_mode(0o660))?;
    let host = Arc::clone(host);
    std::thread::Builder::new().name("accept".into()).spawn(move || {
        loop {
            let host = Arc::clone(&host);
            let handle = move |request, fds, peer| handle(&host, request, fds, peer);
            let e = keelson_wire::serve(&listener, |peer| peer.uid == 0 || peer.uid == HOSTD_UID, handle);
            log::error!("the control socket stumbled and goes on: {e}");
        }
    })?;
    Ok(())
}

/// Root may ask everything. hostd runs VMs and has the host's power, but it must not be able to take netd, the console or
/// itself away for good, nor reach what another daemon keeps.
fn permitted(uid: u32, request: &Request) -> bool {
    let vm = |unit: &UnitId| matches!(unit, UnitId::Vm(_));
    uid == 0
        || uid == HOSTD_UID
            && match request {
            Request::Stop { unit, .. } | Request::Forget { unit } => vm(unit),
            Request::Keep { unit, .. } | Request::Fetch { unit, .. } | Request::Release { unit, .. } => {
                vm(unit) || *unit == UnitId::Hostd
            }
            Request::Boot
            | Request::Units
            | Request::StartVm { .. }
            | Request::Restart { .. }
            // A daemon that is killed comes back by itself.
            | Request::Kill { .. }
            | Request::Kept
            | Request::Logs { .. }
            | Request::Watch
            | Request::SetHostname { .. }
            | Request::Power { .. } => true,
        }
}

fn handle(host: &Arc<Host>, request: Request, fds: Vec<OwnedFd>, peer: PeerIdentity) -> Outcome {
    if !permitted(peer.uid, &request) {
        return Served::Refused(Refusal::NotPermitted(peer.uid));
    }
    if let Request::Watch = request {
        return watch(host);
    }
    match answer(host, request, fds) {
        Ok((answer, fds)) => Served::Answer(answer, fds),
        Err(refusal) => Served::Refused(refusal),
    }
}

fn answer(host: &Arc<Host>, request: Request, fds: Vec<OwnedFd>) -> Result<(Answer, Vec<OwnedFd>), Refusal> {
    let mut given = vec![];
    let answer = match request {
        Request::Boot => Answer::Boot(Box::new(host.lock().boot.clone())),
        Request::Units => Answer::Units(host.statuses()),
        Request::StartVm { id, fds: names, keep, limits } => {
            host.start_vm(UnitId::Vm(id), fds, &names, &keep, limits)?;
            Answer::Done
        }
        Request::Stop { unit, deadline_ms } => {
            host.stop(unit, deadline(deadline_ms), Then::Stay)?;
            Answer::Done
        }
        Request::Kill { unit } => {
            host.kill(unit)?;
            Answer::Done
        }
        Request::Restart { unit } => {
            if host.lock().powering.is_some() {
                return Err(Refusal::GoingDown);
            }
            host.restart(unit)?;
            Answer::Done
        }
        Request::Forget { unit } => {
            host.forget(unit)?;
            Answer::Done
        }
        Request::Keep { unit, name } => {
            let [fd] = <[OwnedFd; 1]>::try_from(fds).map_err(|fds| Refusal::BadParameter {
                field: "fds".into(),
                problem: format!("one descriptor was expected, {} came", fds.len()),
            })?;
            let mut core = host.lock();
            if !core.units.contains_key(&unit) {
                return Err(Refusal::NoSuchUnit(unit));
            }
            core.store.keep(unit, &name, fd)?;
            Answer::Done
        }
        Request::Kept => Answer::Kept(host.lock().store.list()),
        Request::Fetch { unit, name } => {
            given.push(host.lock().store.fetch(unit, &name)?);
            Answer::Done
        }
        Request::Release { unit, name } => {
            host.lock().store.release(unit, &name)?;
            Answer::Done
        }
        Request::Logs { since, max, source } => Answer::Logs(journal::read(since, max, source.as_deref())),
        Request::SetHostname { name } => {
            crate::hostname::set(&name)?;
            Answer::Done
        }
        Request::Power { action, guest_deadline_ms } => {
            power::begin(host, action, deadline(guest_deadline_ms));
            Answer::Done
        }
        Request::Watch => {
            return Err(Refusal::Failed { what: "watching".into(), why: "it is a stream".into() });
        }
    };
    Ok((answer, given))
}

fn deadline(ms: u64) -> Duration {
    Duration::from_millis(ms.min(LONGEST_DEADLINE_MS))
}

fn watch(host: &Arc<Host>) -> Outcome {
    let Some(events) = host.watch() else {
        return Served::Refused(Refusal::Failed {
            what: "watching".into(),
            why: "too many watch already".into(),
        });
    };
    let run = move |stream: Stream<Event>| {
        let _ = stream.set_timeout(Some(SLOW_WATCHER));
        loop {
            match events.recv_timeout(QUIET_WATCHER) {
                Ok(event) => {
                    if stream.send(&event).is_err() {
                        return;
                    }
                }
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) if !stream.is_closed() => {}
                Err(_) => return,
            }
        }
    };
    Served::Stream(Answer::Done, Box::new(run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostd_runs_machines_but_cannot_take_daemons_away() {
        let vm = UnitId::Vm(uuid::Uuid::nil());
        let stop = |unit| Request::Stop { unit, deadline_ms: 1 };
        for request in [
            stop(vm),
            Request::Kill { unit: vm },
            Request::Restart { unit: UnitId::Netd },
            Request::Kill { unit: UnitId::Netd },
            Request::Boot,
        ] {
            assert!(permitted(HOSTD_UID, &request), "{request:?}");
            assert!(permitted(0, &request));
            assert!(!permitted(1000, &request));
        }
        let fetch = |unit| Request::Fetch { unit, name: "x".into() };
        for request in [stop(UnitId::Netd), stop(UnitId::Hostd), fetch(UnitId::Netd)] {
            assert!(!permitted(HOSTD_UID, &request), "{request:?}");
            assert!(permitted(0, &request));
        }
        assert!(permitted(HOSTD_UID, &fetch(UnitId::Hostd)) && permitted(HOSTD_UID, &fetch(vm)));
        assert!(!permitted(1000, &stop(vm)) && !permitted(1000, &fetch(vm)));
    }
}
