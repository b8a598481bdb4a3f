//! A blocking client of init.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use keelson_wire::{CallError, Events};

use crate::{Answer, Boot, Event, Kept, LogLine, Refusal, Request, SOCKET, UnitStatus};

/// Why a call to init brought no answer.
pub type Error = CallError<Refusal>;

/// Speaks to init. Each call waits at most ten seconds for its answer.
#[derive(Debug)]
pub struct Client(keelson_wire::Client<Request, Answer, Refusal>);

impl Client {
    /// Connects to this host's init.
    pub fn connect() -> Result<Self, Error> {
        Self::connect_to(SOCKET)
    }

    /// Connects to the init that listens at `path`.
    pub fn connect_to(path: impl AsRef<std::path::Path>) -> Result<Self, Error> {
        let client = keelson_wire::Client::connect(path)?;
        client.set_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self(client))
    }

    /// Any request whose answer is [`Answer::Done`].
    pub fn tell(&mut self, request: &Request) -> Result<(), Error> {
        self.tell_with_fds(request, &[]).map(|_| ())
    }

    /// The same, with descriptors both ways.
    pub fn tell_with_fds(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<OwnedFd>, Error> {
        match self.0.call_with_fds(request, fds)? {
            (Answer::Done, fds) => Ok(fds),
            _ => Err(out_of_place()),
        }
    }

    /// How the boot went.
    pub fn boot(&mut self) -> Result<Boot, Error> {
        match self.0.call(&Request::Boot)? {
            Answer::Boot(boot) => Ok(*boot),
            _ => Err(out_of_place()),
        }
    }

    /// All units.
    pub fn units(&mut self) -> Result<Vec<UnitStatus>, Error> {
        match self.0.call(&Request::Units)? {
            Answer::Units(units) => Ok(units),
            _ => Err(out_of_place()),
        }
    }

    /// All kept descriptors.
    pub fn kept(&mut self) -> Result<Vec<Kept>, Error> {
        match self.0.call(&Request::Kept)? {
            Answer::Kept(kept) => Ok(kept),
            _ => Err(out_of_place()),
        }
    }

    /// Log lines from sequence number `since` on, at most `max`, of one source or of all.
    pub fn logs(&mut self, since: u64, max: u32, source: Option<String>) -> Result<Vec<LogLine>, Error> {
        match self.0.call(&Request::Logs { since, max, source })? {
            Answer::Logs(lines) => Ok(lines),
            _ => Err(out_of_place()),
        }
    }

    /// Turns the connection into init's events. The stream waits without limit.
    pub fn watch(self) -> Result<Events<Event>, Error> {
        let (_, events) = self.0.stream(&Request::Watch)?;
        let _ = events.set_timeout(None);
        Ok(events)
    }
}

fn out_of_place() -> Error {
    CallError::Refused(Refusal::Failed {
        what: "a call to init".into(),
        why: "it answered something else than was asked".into(),
    })
}
