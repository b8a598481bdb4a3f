//! A blocking client of netd.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use keelson_wire::{CallError, Events};
use uuid::Uuid;

use crate::{Answer, Event, NetworkConfig, NetworkStatus, Refusal, Request, SOCKET};

/// Why a call to netd brought no answer.
pub type Error = CallError<Refusal>;

/// Speaks to netd. Each call waits at most thirty seconds for its answer.
#[derive(Debug)]
pub struct Client(keelson_wire::Client<Request, Answer, Refusal>);

impl Client {
    /// Connects to this host's netd.
    pub fn connect() -> Result<Self, Error> {
        Self::connect_to(SOCKET)
    }

    /// Connects to the netd that listens at `path`.
    pub fn connect_to(path: impl AsRef<Path>) -> Result<Self, Error> {
        let client = keelson_wire::Client::connect(path)?;
        client.set_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self(client))
    }

    /// What is wanted and what is.
    pub fn get(&mut self) -> Result<(NetworkConfig, NetworkStatus), Error> {
        match self.0.call(&Request::Get)? {
            Answer::Network { config, status } => Ok((*config, *status)),
            _ => Err(out_of_place()),
        }
    }

    /// Makes the network so.
    pub fn set(&mut self, config: NetworkConfig, revision: Option<u64>) -> Result<(), Error> {
        self.0.call(&Request::Set { config: Box::new(config), revision }).map(|_| ())
    }

    /// Restarts the management network.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.0.call(&Request::Restart).map(|_| ())
    }

    /// Makes a tap for a VM's adapter; returns its name and its descriptor.
    pub fn open_tap(&mut self, vm: Uuid, index: u32, port_group: &str) -> Result<(String, OwnedFd), Error> {
        let request = Request::OpenTap { vm, index, port_group: port_group.into() };
        match self.0.call_with_fds(&request, &[])? {
            (Answer::Tap { name }, fds) => match fds.into_iter().next() {
                Some(fd) => Ok((name, fd)),
                None => Err(out_of_place()),
            },
            _ => Err(out_of_place()),
        }
    }

    /// Removes all taps of a VM.
    pub fn close_taps(&mut self, vm: Uuid) -> Result<(), Error> {
        self.0.call(&Request::CloseTaps { vm }).map(|_| ())
    }

    /// Turns the connection into netd's events, the present state first. The stream waits without limit.
    pub fn watch(self) -> Result<Events<Event>, Error> {
        let (_, events) = self.0.stream(&Request::Watch)?;
        let _ = events.set_timeout(None);
        Ok(events)
    }
}

fn out_of_place() -> Error {
    CallError::Refused(Refusal::Failed {
        what: "a call to netd".into(),
        why: "it answered something else than was asked".into(),
    })
}
