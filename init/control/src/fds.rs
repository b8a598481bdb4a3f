//! How a unit gets its descriptors: init leaves them open across exec and names them in the environment variable `KEELSON_FDS`
//! as `name:number,name:number`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// The environment variable.
pub const VARIABLE: &str = "KEELSON_FDS";

/// The descriptors that this process was given, by name.
#[derive(Debug, Default)]
pub struct Given(BTreeMap<String, OwnedFd>);

/// Why the descriptors could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum FdsError {
    /// The variable is not of the form `name:number,…`.
    #[error("{VARIABLE} has an entry `{0}` that is not of the form name:number")]
    Malformed(String),
    /// A number names no open descriptor, or one of the three standard ones.
    #[error("{VARIABLE} gives `{name}` as descriptor {number}, which is not open")]
    NotOpen {
        /// The name.
        name: String,
        /// The number.
        number: i32,
    },
    /// They were taken before.
    #[error("the descriptors of {VARIABLE} were taken before")]
    Taken,
    /// A descriptor that this process needs is missing.
    #[error("no descriptor named `{0}` was handed in")]
    Missing(String),
}

/// Takes the descriptors that init handed in; they become close-on-exec. Possible once in a process.
pub fn take() -> Result<Given, FdsError> {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    let mut numbers = Vec::new();
    for entry in text.split(',').filter(|e| !e.is_empty()) {
        let parsed =
            entry.rsplit_once(':').and_then(|(name, n)| Some((name.to_owned(), n.parse::<i32>().ok()?)));
        numbers.push(parsed.ok_or_else(|| FdsError::Malformed(entry.into()))?);
    }
    Ok(Given(crate::sys::adopt(&numbers)?))
}

impl Given {
    /// Takes one out.
    pub fn remove(&mut self, name: &str) -> Result<OwnedFd, FdsError> {
        self.0.remove(name).ok_or_else(|| FdsError::Missing(name.into()))
    }

    /// Takes one out that may be missing.
    pub fn remove_optional(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// The names that are left.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl FromIterator<(String, OwnedFd)> for Given {
    fn from_iter<I: IntoIterator<Item = (String, OwnedFd)>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}
