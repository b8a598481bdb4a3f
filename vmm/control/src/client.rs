//! A blocking client for one monitor.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keelson_wire::{CallError, Events};
use uuid::Uuid;

use crate::{Answer, Event, Refusal, Request, StateSet, Status};

/// Where init puts the control socket of the VM `id`.
pub fn control_socket(id: Uuid) -> PathBuf {
    PathBuf::from(format!("/run/keelson/vm/{id}/control.sock"))
}

/// Where init puts the console socket of the VM `id`.
pub fn console_socket(id: Uuid) -> PathBuf {
    PathBuf::from(format!("/run/keelson/vm/{id}/console.sock"))
}

/// How long a call waits for its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Speaks to one monitor. Each call waits at most ten seconds for its answer, but for [`Client::suspend`].
#[derive(Debug)]
pub struct Client(keelson_wire::Client<Request, Answer, Refusal>);

/// Why a call to a monitor brought no answer.
pub type Error = CallError<Refusal>;

impl Client {
    /// Connects to a monitor's control socket.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        let client = keelson_wire::Client::connect(path)?;
        client.set_timeout(Some(PATIENCE))?;
        Ok(Self(client))
    }

    /// How the machine is.
    pub fn status(&mut self) -> Result<Status, Error> {
        match self.0.call(&Request::Status)? {
            Answer::Status(status) => Ok(status),
            Answer::Done => Err(CallError::Refused(Refusal::Failed(
                "the monitor answered a status request with `done`".into(),
            ))),
        }
    }

    /// Any request whose answer is [`Answer::Done`].
    pub fn tell(&mut self, request: &Request) -> Result<(), Error> {
        self.0.call(request).map(|_| ())
    }

    /// Suspends the machine into two files ([`Request::Suspend`]). Waits as long as it takes to write what the guest has touched.
    pub fn suspend(
        &mut self,
        state: BorrowedFd<'_>,
        memory: BorrowedFd<'_>,
        set: StateSet,
    ) -> Result<(), Error> {
        self.0.set_timeout(None)?;
        let answered = self.0.call_with_fds(&Request::Suspend { set }, &[state, memory]);
        self.0.set_timeout(Some(PATIENCE))?;
        answered.map(|_| ())
    }

    /// Turns the connection into the machine's events, its current state first. The stream waits without limit.
    pub fn watch(self) -> Result<Events<Event>, Error> {
        let (_, events) = self.0.stream(&Request::Watch)?;
        let _ = events.set_timeout(None);
        Ok(events)
    }
}
