//! What all of hostd shares: where things are, which host this is, the account, the conditions.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use keelson_api::Identity;
use keelson_init_control::{Boot, HostWords, check_hostname};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::account::Account;
use crate::conditions::Conditions;
use crate::paths::Paths;
use crate::store::{self, Document, Found, StoreError};

/// The name of a host that has not been given one.
const DEFAULT_HOSTNAME: &str = "keelson";

/// What all of hostd shares.
#[derive(Debug)]
pub struct Agent {
    /// Where files and sockets are.
    pub paths: Paths,
    /// The account root.
    pub account: Account,
    /// What a person should know about hostd itself.
    pub conditions: Conditions,
    host: Mutex<HostDocument>,
    fingerprint: OnceLock<String>,
}

/// `host.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostDocument {
    schema: u32,
    host_id: Uuid,
    /// `None` until someone gives a name; then a word of the command line no longer counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    /// The CPU definition beyond which no new VM goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpu_baseline: Option<String>,
    /// The name that is used while none is given: a host word's, or the default.
    #[serde(skip)]
    fallback: String,
}

impl Document for HostDocument {
    const SCHEMA: u32 = 1;
    fn validate(&self) -> Result<(), String> {
        self.hostname.as_deref().map_or(Ok(()), check_hostname)
    }
}

impl Agent {
    /// Reads hostd's documents and makes those that are missing. It always succeeds: what cannot be read or kept is a condition.
    /// `boot` is what init told, `None` when it could not be reached.
    pub fn open(paths: Paths, boot: Option<&Boot>) -> Arc<Self> {
        let conditions = Conditions::default();
        let words = boot.map(|b| b.words.clone()).unwrap_or_default();
        // Without a state partition the file does not outlive the boot: the machine's own id is the one that stays.
        let own = boot.filter(|b| b.state.is_none()).and_then(|b| b.system_uuid);
        let host = open_host(&paths.host_file(), &words, own, &conditions);
        let account = Account::open(paths.accounts_file(), words.root_hash.as_deref(), &conditions);
        Arc::new(Self { paths, account, conditions, host: Mutex::new(host), fingerprint: OnceLock::new() })
    }

    fn host(&self) -> std::sync::MutexGuard<'_, HostDocument> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's id; it stays over reboots when the host has a state partition.
    pub fn host_id(&self) -> Uuid {
        self.host().host_id
    }

    /// The host's name.
    pub fn hostname(&self) -> String {
        let host = self.host();
        host.hostname.clone().unwrap_or_else(|| host.fallback.clone())
    }

    /// Gives the host a name and remembers it. The kernel's copy is init's to set.
    pub fn set_hostname(&self, name: &str) -> Result<(), StoreError> {
        let mut host = self.host();
        let changed = HostDocument { hostname: Some(name.to_owned()), ..host.clone() };
        store::save(&self.paths.host_file(), &changed, 0o644)?;
        *host = changed;
        Ok(())
    }

    /// The CPU definition beyond which no new VM goes.
    pub fn cpu_baseline(&self) -> Option<String> {
        self.host().cpu_baseline.clone()
    }

    /// Sets it, or takes it away, and remembers that.
    pub fn set_cpu_baseline(&self, baseline: Option<String>) -> Result<(), StoreError> {
        let mut host = self.host();
        let changed = HostDocument { cpu_baseline: baseline, ..host.clone() };
        store::save(&self.paths.host_file(), &changed, 0o644)?;
        *host = changed;
        Ok(())
    }

    /// The certificate's fingerprint, set once when the front has it.
    pub(crate) fn set_fingerprint(&self, fingerprint: String) {
        let _ = self.fingerprint.set(fingerprint);
    }

    /// Which host this is.
    pub fn identity(&self) -> Identity {
        Identity {
            product: "Keelson".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            host_id: self.host_id(),
            hostname: self.hostname(),
            certificate_sha256: self.fingerprint.get().cloned().unwrap_or_default(),
            password_set: self.account.password_set(),
        }
    }
}

/// Reads `host.toml`, or makes it, with the id `own` if the machine has one that is to be used.
fn open_host(path: &Path, words: &HostWords, own: Option<Uuid>, conditions: &Conditions) -> HostDocument {
    let new_id = || own.unwrap_or_else(Uuid::new_v4);
    let fallback = words.hostname.clone().unwrap_or_else(|| DEFAULT_HOSTNAME.into());
    match store::load::<HostDocument>(path) {
        Ok(Found::Good(host)) => return HostDocument { fallback, ..host },
        Ok(Found::Previous { document, why }) => {
            conditions.set(
                "host-file",
                format!("{} cannot be used: {why}; its previous version is in force", path.display()),
                "check the host's name, and set it anew",
            );
            return HostDocument { fallback, ..document };
        }
        Ok(Found::Missing) => {}
        Err(e) => {
            conditions.set(
                "host-file",
                keelson_init_control::logging::chain(&e),
                "the host has a new id until that is repaired",
            );
            return HostDocument {
                schema: HostDocument::SCHEMA,
                host_id: new_id(),
                hostname: None,
                cpu_baseline: None,
                fallback,
            };
        }
    }
    let host = HostDocument {
        schema: HostDocument::SCHEMA,
        host_id: new_id(),
        hostname: None,
        cpu_baseline: None,
        fallback,
    };
    if let Err(e) = store::save(path, &host, 0o644) {
        conditions.set(
            "state-not-writable",
            keelson_init_control::logging::chain(&e),
            "free space on the state partition or repair it; what is changed now is lost at the next start",
        );
    }
    host
}

#[cfg(test)]
mod tests {
    use keelson_init_control::StateVolume;

    use super::*;

    fn paths(dir: &Path) -> Paths {
        Paths { state: dir.join("state"), datastore: dir.join("datastore"), run: dir.join("run") }
    }

    #[test]
    fn the_identity_stays_and_a_given_name_wins_over_the_word() {
        let dir = tempfile::tempdir().unwrap();
        let boot = Boot {
            words: HostWords { hostname: Some("word".into()), ..HostWords::default() },
            ..Boot::default()
        };
        let first = Agent::open(paths(dir.path()), None);
        assert_eq!(first.hostname(), DEFAULT_HOSTNAME);
        let second = Agent::open(paths(dir.path()), Some(&boot));
        assert_eq!((second.host_id(), second.hostname()), (first.host_id(), "word".into()));
        second.set_hostname("given").unwrap();
        assert!(second.set_hostname("not a name").is_err());
        second.set_cpu_baseline(Some("amd-zen2".into())).unwrap();
        let third = Agent::open(paths(dir.path()), Some(&boot));
        assert_eq!((third.hostname(), third.cpu_baseline()), ("given".into(), Some("amd-zen2".into())));
        assert_eq!(second.conditions.all(), []);
    }

    #[test]
    fn without_a_state_partition_the_machine_is_the_host() {
        let machine = Uuid::from_u128(7);
        let boot = Boot { system_uuid: Some(machine), ..Boot::default() };
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Agent::open(paths(dir.path()), Some(&boot)).host_id(), machine);
        // With one, its file is: the disk may move to another machine.
        let dir = tempfile::tempdir().unwrap();
        let state = StateVolume { device: "/dev/vda2".into(), bytes: 1, grown: false };
        let boot = Boot { state: Some(state), ..boot };
        let first = Agent::open(paths(dir.path()), Some(&boot)).host_id();
        assert_ne!(first, machine);
        assert_eq!(Agent::open(paths(dir.path()), Some(&boot)).host_id(), first);
    }

    #[test]
    fn a_host_whose_state_cannot_be_written_still_has_an_identity_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("state"), "a file where the directory should be").unwrap();
        let agent = Agent::open(paths(dir.path()), None);
        assert!(!agent.identity().host_id.is_nil());
        assert!(!agent.conditions.all().is_empty());
    }
}
