//! The hosts that were logged in to: `$XDG_CONFIG_HOME/keelson/hosts.toml`, readable by its owner only, since it holds tokens.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use keelson_api::client::Fingerprint;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hosts {
    /// The host that is meant when none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) default: Option<String>,
    #[serde(default)]
    pub(crate) hosts: BTreeMap<String, Known>,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// Its certificate, as trusted on first use.
    pub(crate) fingerprint: String,
    /// The account.
    pub(crate) username: String,
    /// The session's token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
}

impl Known {
    pub(crate) fn pin(&self, host: &str, path: &Path) -> Result<Fingerprint, Failure> {
        self.fingerprint.parse().map_err(|e| {
            Failure::Usage(format!(
                "{}: the fingerprint of {host} is damaged: {e}; log in again",
                path.display()
            ))
        })
    }
}

/// Where the file is, by the XDG base directory rules.
pub(crate) fn path() -> Result<PathBuf, Failure> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    let base = base.ok_or_else(|| Failure::Usage("neither XDG_CONFIG_HOME nor HOME is set, so there is no place to remember hosts; use --local, or --host with --token and --fingerprint".into()))?;
    Ok(base.join("keelson").join("hosts.toml"))
}

impl Hosts {
    /// Reads the file; none is an empty one.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(Failure::local(format!("{} cannot be read", path.display()), e)),
        };
        toml::from_str(&text).map_err(|e| {
            Failure::local(
                format!("{} is damaged; mend or delete it and log in again", path.display()),
                std::io::Error::new(ErrorKind::InvalidData, e.to_string()),
            )
        })
    }

    /// Writes the file, whole or not at all, with mode 0600.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let failed = |e| Failure::local(format!("{} cannot be written", path.display()), e);
        let text = toml::to_string_pretty(self).map_err(|e| failed(std::io::Error::other(e.to_string())))?;
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        }
        let fresh = path.with_extension("toml.new");
        let mut file = fs::File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(failed)?;
        // An old one left behind keeps its own mode.
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&fresh, path).map_err(failed)
    }
}
