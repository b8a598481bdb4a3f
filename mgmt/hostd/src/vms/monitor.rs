//! Speaking to the monitor of a running VM.

use std::path::Path;
use std::time::Duration;

use keelson_api::Problem;
use keelson_vmm_control::{Answer, Error, Refusal, Request, Status};
use keelson_wire::{CallError, Client};

use crate::problems;

/// How long a monitor may take for an answer when somebody only looks.
const LOOK: Duration = Duration::from_secs(2);
/// How long it may take to do something.
const ACT: Duration = Duration::from_secs(10);

fn call(socket: &Path, request: &Request, timeout: Duration) -> Result<Answer, Error> {
    let mut client = Client::<Request, Answer, Refusal>::connect(socket)?;
    client.set_timeout(Some(timeout))?;
    client.call(request)
}

/// How the machine is.
pub(super) fn status(socket: &Path) -> Result<Status, Error> {
    status_within(socket, LOOK)
}

/// How the machine is; waits longer for it.
pub(super) fn status_within(socket: &Path, timeout: Duration) -> Result<Status, Error> {
    match call(socket, &Request::Status, timeout)? {
        Answer::Status(status) => Ok(status),
        Answer::Done => Err(CallError::Refused(Refusal::Failed(
            "the monitor answered a status request with `done`".into(),
        ))),
    }
}

/// Has the monitor do something.
pub(super) fn tell(socket: &Path, request: &Request, doing: &str) -> Result<(), Problem> {
    call(socket, request, ACT).map(|_| ()).map_err(|e| problems::monitor(doing, &e))
}
