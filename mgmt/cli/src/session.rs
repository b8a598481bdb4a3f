//! Which host is spoken to, and as whom.

use keelson_api::client::Client;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::hosts::{Hosts, path};

/// A client, and the name under which its host is remembered.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) remembered: Option<String>,
}

impl Session {
    /// The host that the command line, the environment or the last login names.
    pub(crate) fn open(cli: &Cli) -> Result<Self, Failure> {
        if cli.local {
            let client = cli.socket.as_ref().map_or_else(Client::local, Client::local_at);
            return Ok(Self { client, remembered: None });
        }
        // All that is needed is given: then no file is.
        if let (Some(host), Some(pin), Some(token)) = (&cli.host, cli.fingerprint, &cli.token) {
            return Ok(Self { client: Client::https(host, pin)?.with_token(token), remembered: None });
        }
        let path = path()?;
        let hosts = Hosts::read(&path)?;
        let name = cli.host.clone().or_else(|| hosts.default.clone()).ok_or_else(|| {
            Failure::Usage("no host is named and none was logged in to: `keelctl login HOST` first, or --local on a host itself".into())
        })?;
        let known = hosts.hosts.get(&name);
        let pin = match (cli.fingerprint, known) {
            (Some(pin), _) => pin,
            (None, Some(known)) => known.pin(&name, &path)?,
            (None, None) => {
                return Err(Failure::NotLoggedIn(format!(
                    "{name} is not known here: `keelctl login {name}` first, or give --fingerprint"
                )));
            }
        };
        let token = cli.token.clone().or_else(|| known.and_then(|k| k.token.clone()));
        let token = token.ok_or_else(|| {
            Failure::NotLoggedIn(format!("not logged in to {name}: `keelctl login {name}` first"))
        })?;
        let client = Client::https(&name, pin)?.with_token(token);
        Ok(Self { client, remembered: known.map(|_| name) })
    }
}
