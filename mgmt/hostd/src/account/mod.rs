//! The one account, root: its password, sessions and tokens.

mod bearer;
mod document;
mod password;
pub(crate) mod routes;
mod throttle;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use keelson_api::{Fault, IssuedToken, NewToken, Problem, ROOT, Session, Token};
use keelson_init_control::logging::chain;
use uuid::Uuid;

use crate::conditions::Conditions;
use crate::store::{self, Found, StoreError};

pub(crate) use bearer::SessionKey;
use bearer::Sessions;
use document::{Accounts, KeptToken};
use password::{Hash, Hasher, PasswordError};
pub(crate) use throttle::Sender;
use throttle::{Throttle, TooMany};

/// How many tokens can be issued.
const TOKENS: usize = 256;

/// The account root.
#[derive(Debug)]
pub struct Account {
    path: PathBuf,
    kept: Mutex<Accounts>,
    sessions: Mutex<Sessions>,
    hasher: Hasher,
    throttle: Throttle,
}

/// What a right token leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bearer {
    Session(SessionKey),
    /// An issued token, by its name.
    Issued(String),
}

impl Account {
    /// Reads the accounts. Where no password is set, the hash of a host word becomes root's password.
    pub fn open(path: PathBuf, root_hash: Option<&str>, conditions: &Conditions) -> Self {
        let mut kept = read(&path, conditions);
        if let (None, Some(word)) = (&kept.root, root_hash) {
            match Hash::parse(word) {
                Ok(hash) => {
                    kept.root = Some(hash.as_str().to_owned());
                    if let Err(e) = store::save(&path, &kept, 0o600) {
                        conditions.set("state-not-writable", chain(&e), "free space on the state partition or repair it; what is changed now is lost at the next start");
                    }
                    log::info!("root's password is that of the host word root_hash");
                }
                Err(e) => conditions.set(
                    "word-ignored",
                    format!("the host word root_hash is ignored: {e}"),
                    "give an argon2id hash in PHC form, or set the password at the console",
                ),
            }
        }
        Self {
            path,
            kept: Mutex::new(kept),
            sessions: Mutex::default(),
            hasher: Hasher::default(),
            throttle: Throttle::default(),
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Accounts> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether root has a password.
    pub fn password_set(&self) -> bool {
        self.kept().root.is_some()
    }

    /// What a token leads to; `None` when it is wrong or has ended. A session is thereby used.
    pub(crate) fn bearer(&self, token: &str) -> Option<Bearer> {
        if let Some(key) = self.sessions().touch(token, Instant::now()) {
            return Some(Bearer::Session(key));
        }
        let digest = bearer::digest(token);
        let now = jiff::Timestamp::now();
        let kept = self.kept();
        let found = kept.tokens.iter().find(|t| t.sha256 == crate::random::to_hex(&digest))?;
        found.about.expires.is_none_or(|end| now < end).then(|| Bearer::Issued(found.about.name.clone()))
    }

    /// Counts a request with no token or a wrong one, and says how long its answer shall wait.
    pub(crate) fn refused(&self, sender: Sender) -> Duration {
        self.throttle.refused(sender, Instant::now())
    }

    /// Compares credentials, after the wait that earlier failures of this sender earned. `wait` waits, and says whether to give up.
    pub(crate) fn verify(
        &self,
        username: &str,
        password: &str,
        sender: Sender,
        wait: impl FnOnce(Duration) -> bool,
    ) -> Result<(), Problem> {
        let turn = self.throttle.begin(sender, Instant::now()).map_err(|TooMany(wait)| {
            Problem::new(Fault::TooManyRequests, "too many attempts to log in are waiting from here")
                .remedy(format!("try again in {} seconds", wait.as_secs()))
        })?;
        if wait(turn) {
            self.throttle.ended(sender, None, Instant::now());
            return Err(wrong());
        }
        let hash = self.kept().root.clone().and_then(|text| Hash::parse(&text).ok());
        // The password is always looked at, so that a wrong name takes as long as a wrong password.
        let right = self.hasher.verify(password, hash.as_ref()) & (username == ROOT);
        self.throttle.ended(sender, Some(right), Instant::now());
        if right {
            Ok(())
        } else {
            log::warn!(
                "wrong credentials from {}",
                sender.map_or("the local socket".to_owned(), |peer| peer.to_string())
            );
            Err(wrong())
        }
    }

    /// Opens a session for someone whose credentials were right.
    pub(crate) fn open_session(&self) -> Result<Session, Problem> {
        let token = self
            .sessions()
            .open(Instant::now())
            .map_err(|e| Problem::new(Fault::SystemError, e.to_string()))?;
        Ok(Session { token, idle_timeout_s: bearer::IDLE.as_secs() })
    }

    /// Ends a session.
    pub(crate) fn end_session(&self, key: SessionKey) {
        self.sessions().end(key);
    }

    /// Sets the password; sessions other than `kept` end.
    pub(crate) fn set_password(&self, new: &str, kept: Option<SessionKey>) -> Result<(), Problem> {
        let hash = self.hasher.hash(new).map_err(|e| match e {
            PasswordError::TooShort | PasswordError::TooLong | PasswordError::Control => {
                Problem::new(Fault::InvalidArgument, format!("the new password cannot be used: {e}"))
                    .field("new")
                    .remedy(format!(
                        "use at least {} characters, without control characters",
                        keelson_api::MIN_PASSWORD
                    ))
            }
            other => Problem::new(Fault::SystemError, format!("the password was not changed: {other}")),
        })?;
        self.change(|accounts| accounts.root = Some(hash.as_str().to_owned()))?;
        self.sessions().end_others(kept);
        log::info!("root's password was changed");
        Ok(())
    }

    /// The issued tokens that have not ended.
    pub(crate) fn tokens(&self) -> Vec<Token> {
        let now = jiff::Timestamp::now();
        self.kept()
            .tokens
            .iter()
            .map(|t| t.about.clone())
            .filter(|t| t.expires.is_none_or(|end| now < end))
            .collect()
    }

    /// Issues a token.
    pub(crate) fn issue(&self, new: &NewToken) -> Result<IssuedToken, Problem> {
        let bad = |field, why: &str| Err(Problem::new(Fault::InvalidArgument, why.to_owned()).field(field));
        if new.name.trim().is_empty()
            || new.name.chars().count() > 64
            || new.name.chars().any(char::is_control)
        {
            return bad("name", "a token's name is 1 to 64 characters, without control characters");
        }
        let created = jiff::Timestamp::now();
        let expires = match new.expires_in_s.map(|s| {
            i64::try_from(s)
                .ok()
                .filter(|s| *s > 0)
                .and_then(|s| created.checked_add(jiff::SignedDuration::from_secs(s)).ok())
        }) {
            None => None,
            Some(Some(end)) => Some(end),
            Some(None) => {
                return bad("expires_in_s", "a token lasts at least a second and not beyond the year 9999");
            }
        };
        let token = bearer::new_token("keelson-token-")
            .map_err(|e| Problem::new(Fault::SystemError, e.to_string()))?;
        let about = Token { id: Uuid::new_v4(), name: new.name.clone(), created, expires };
        let kept = KeptToken { sha256: crate::random::to_hex(&bearer::digest(&token)), about: about.clone() };
        let mut full = false;
        self.change(|accounts| {
            accounts.tokens.retain(|t| t.about.expires.is_none_or(|end| created < end));
            full = accounts.tokens.len() >= TOKENS;
            if !full {
                accounts.tokens.push(kept);
            }
        })?;
        if full {
            return Err(Problem::new(
                Fault::InsufficientResourcesFault,
                format!("there are {TOKENS} tokens already"),
            )
            .remedy("delete those that are not needed"));
        }
        Ok(IssuedToken { token, about })
    }

    /// Takes a token back; whether there was one.
    pub(crate) fn revoke(&self, id: Uuid) -> Result<bool, Problem> {
        let mut found = false;
        self.change(|accounts| {
            let before = accounts.tokens.len();
            accounts.tokens.retain(|t| t.about.id != id);
            found = accounts.tokens.len() < before;
        })?;
        Ok(found)
    }

    /// Changes the accounts: kept first, in force only then.
    fn change(&self, edit: impl FnOnce(&mut Accounts)) -> Result<(), Problem> {
        let mut kept = self.kept();
        let mut changed = kept.clone();
        edit(&mut changed);
        if changed != *kept {
            store::save(&self.path, &changed, 0o600).map_err(|e| not_saved(&e))?;
            *kept = changed;
        }
        Ok(())
    }
}

/// The one answer to no credentials and to wrong ones.
pub(crate) fn wrong() -> Problem {
    Problem::new(Fault::NotAuthenticated, "the credentials are wrong or missing")
        .remedy("log in with POST /api/v1/sessions, or send a valid token")
}

fn not_saved(error: &StoreError) -> Problem {
    let fault = if error.is_no_space() { Fault::NoDiskSpace } else { Fault::SystemError };
    Problem::new(fault, format!("the account was not changed: {}", chain(error)))
        .remedy("free space on the state partition, or look at the host's log")
}

fn read(path: &Path, conditions: &Conditions) -> Accounts {
    match store::load::<Accounts>(path) {
        Ok(Found::Good(accounts)) => accounts,
        Ok(Found::Missing) => Accounts::default(),
        Ok(Found::Previous { document, why }) => {
            conditions.set(
                "accounts-file",
                format!("{} cannot be used: {why}; its previous version is in force", path.display()),
                "an older password may count again: set it anew",
            );
            document
        }
        Err(e) => {
            // Not an open door: without a password the network side serves identity and health only.
            conditions.set("accounts-file", chain(&e), "set root's password at the console");
            Accounts::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(dir: &Path, word: Option<&str>) -> (Account, Conditions) {
        let conditions = Conditions::default();
        (Account::open(dir.join("accounts.toml"), word, &conditions), conditions)
    }

    fn right(account: &Account, password: &str) -> bool {
        account.verify(ROOT, password, None, |_| false).is_ok()
    }

    #[test]
    fn a_word_seeds_the_password_only_once_and_only_if_it_is_a_hash() {
        let dir = tempfile::tempdir().unwrap();
        let hasher = Hasher::default();
        let (seed, later) = (hasher.hash("from the word").unwrap(), hasher.hash("another word").unwrap());
        let (none, conditions) = account(dir.path(), Some("$argon2id$nonsense"));
        assert!(!none.password_set());
        assert_eq!(conditions.all()[0].code, "word-ignored");
        let (seeded, _) = account(dir.path(), Some(seed.as_str()));
        assert!(right(&seeded, "from the word"));
        let (again, _) = account(dir.path(), Some(later.as_str()));
        assert!(right(&again, "from the word") && !right(&again, "another word"));
    }

    #[test]
    fn tokens_outlive_a_restart_and_end_when_revoked_or_expired() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = account(dir.path(), None);
        let backup = first.issue(&NewToken { name: "backup".into(), expires_in_s: None }).unwrap();
        assert!(first.issue(&NewToken { name: " ".into(), expires_in_s: None }).is_err());
        assert!(first.issue(&NewToken { name: "x".into(), expires_in_s: Some(u64::MAX) }).is_err());
        assert!(first.issue(&NewToken { name: "x".into(), expires_in_s: Some(0) }).is_err());
        let (second, _) = account(dir.path(), None);
        assert_eq!(second.bearer(&backup.token), Some(Bearer::Issued("backup".into())));
        assert_eq!(second.tokens(), std::slice::from_ref(&backup.about));
        assert!(
            !std::fs::read_to_string(dir.path().join("accounts.toml")).unwrap().contains(&backup.token),
            "only its hash is kept"
        );
        assert_eq!(second.revoke(backup.about.id), Ok(true));
        assert_eq!(second.bearer(&backup.token), None);
    }

    #[test]
    fn a_new_password_ends_the_other_sessions() {
        let dir = tempfile::tempdir().unwrap();
        let (account, _) = account(dir.path(), None);
        account.set_password("first password", None).unwrap();
        let (mine, other) = (account.open_session().unwrap(), account.open_session().unwrap());
        let Some(Bearer::Session(key)) = account.bearer(&mine.token) else { panic!("not a session") };
        account.set_password("second password", Some(key)).unwrap();
        assert!(account.bearer(&mine.token).is_some() && account.bearer(&other.token).is_none());
        assert!(right(&account, "second password") && !right(&account, "first password"));
        assert_eq!(account.verify("admin", "second password", None, |_| false).unwrap_err(), wrong());
    }

    #[test]
    fn broken_accounts_open_no_door() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("accounts.toml"), "broken").unwrap();
        let (account, conditions) = account(dir.path(), None);
        assert!(!account.password_set() && !right(&account, ""));
        assert_eq!(conditions.all()[0].code, "accounts-file");
    }

    #[test]
    fn a_wait_that_is_given_up_looks_at_no_password() {
        let dir = tempfile::tempdir().unwrap();
        let (account, _) = account(dir.path(), None);
        account.set_password("the password", None).unwrap();
        assert!(account.verify(ROOT, "the password", None, |_| true).is_err());
    }
}
