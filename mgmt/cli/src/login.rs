//! `login` and `logout`.

use keelson_api::Login as Credentials;
use keelson_api::client::{Client, certificate_of};

use crate::cli::{Cli, Login};
use crate::failure::Failure;
use crate::hosts::{Hosts, Known, path};
use crate::output::Output;
use crate::session::Session;
use crate::terminal;

/// Logs in: whom to trust first, the password then.
pub(crate) fn login(cli: &Cli, login: &Login, output: &Output) -> Result<(), Failure> {
    if cli.local {
        return Err(Failure::Usage("--local needs no login: whoever is root on the host is root".into()));
    }
    let host = login
        .to
        .clone()
        .or_else(|| cli.host.clone())
        .ok_or_else(|| Failure::Usage("which host? `keelctl login HOST`".into()))?;
    let host = host.trim().trim_start_matches("https://").trim_end_matches('/').to_owned();
    let path = path()?;
    let mut hosts = Hosts::read(&path)?;
    let known = hosts.hosts.get(&host).map(|k| k.pin(&host, &path)).transpose()?;
    let pin = match (cli.fingerprint, known) {
        (Some(pin), _) => pin,
        (None, Some(pin)) => {
            let shown = certificate_of(&host)?;
            // A change is worth a question of its own, and never a silent yes.
            if shown != pin {
                let question = format!(
                    "THE CERTIFICATE OF {host} HAS CHANGED.\n  trusted: {pin}\n  shown:   {shown}\nIf the host was installed anew, its console screen shows the new one. Trust it from now on?"
                );
                if !terminal::confirm(&question)? {
                    return Err(keelson_api::client::ClientError::FingerprintMismatch {
                        host,
                        expected: pin,
                        found: shown,
                    }
                    .into());
                }
            }
            shown
        }
        (None, None) => {
            let shown = certificate_of(&host)?;
            let question = format!(
                "{host} is not known here yet. The SHA-256 fingerprint of its certificate is\n  {shown}\nand has to be the one on the host's console screen. Is it, and shall it be trusted?"
            );
            if login.yes {
                eprintln!("Trusting the certificate of {host}, SHA-256 {shown}");
            } else if !terminal::confirm(&question)? {
                return Err(Failure::Usage(format!("{host} is not trusted; nothing was sent to it")));
            }
            shown
        }
    };
    let client = Client::https(&host, pin)?;
    let password = if login.password_stdin {
        terminal::line_from_stdin()?
    } else {
        terminal::password(&format!("Password of {} on {host}: ", login.username))?
    };
    let session = client.login(&Credentials { username: login.username.clone(), password })?;
    hosts.hosts.insert(
        host.clone(),
        Known { fingerprint: pin.to_string(), username: login.username.clone(), token: Some(session.token) },
    );
    hosts.default = Some(host.clone());
    hosts.write(&path)?;
    let identity = client.identity()?;
    output.one(&identity, || {
        vec![
            ("Logged in to", format!("{} ({} {})", identity.hostname, identity.product, identity.version)),
            ("Session ends after", format!("{} idle", crate::output::span(session.idle_timeout_s))),
        ]
    })
}

/// Ends the session, and forgets its token; the certificate stays trusted.
pub(crate) fn logout(session: &Session) -> Result<(), Failure> {
    let ended = session.client.logout();
    if let Some(name) = &session.remembered {
        let path = path()?;
        let mut hosts = Hosts::read(&path)?;
        if let Some(known) = hosts.hosts.get_mut(name) {
            known.token = None;
        }
        hosts.write(&path)?;
    }
    // A session that is over already is what was wanted.
    match ended {
        Err(e) if e.fault() == Some(keelson_api::Fault::NotAuthenticated) => Ok(()),
        other => Ok(other?),
    }
}
