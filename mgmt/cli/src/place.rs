//! Places on datastores, disks and adapters as they are written on the command line.

use std::fmt;
use std::str::FromStr;

use keelson_api::{DiskSpec, NicSpec};

/// A path on a datastore: `[datastore] dir/file` or `datastore:dir/file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) datastore: String,
    /// Without a slash in front; empty for the root.
    pub(crate) path: String,
}

impl FromStr for Place {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (datastore, path) = match text.strip_prefix('[') {
            Some(rest) => rest
                .split_once(']')
                .ok_or_else(|| format!("`{text}` lacks the closing `]` of its datastore"))?,
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let (datastore, path) = (datastore.trim(), path.trim().trim_start_matches('/'));
        if datastore.is_empty() {
            return Err(format!("`{text}` names no datastore: write \"[datastore] path\" or datastore:path"));
        }
        Ok(Self { datastore: datastore.into(), path: path.into() })
    }
}

impl fmt::Display for Place {
    /// As the API writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.datastore, self.path)
    }
}

impl Place {
    /// This place, which has to be a file's.
    pub(crate) fn file(&self) -> Result<&Self, String> {
        if self.path.is_empty() || self.path.ends_with('/') {
            Err(format!("`{self}` is a directory; a file's path is needed"))
        } else {
            Ok(self)
        }
    }

    /// The last part of its path.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// A disk: `new=SIZE`, or an image's place; with `,ro` it is read-only.
pub(crate) fn disk(text: &str) -> Result<DiskSpec, String> {
    let (what, read_only) = match text.strip_suffix(",ro") {
        Some(what) => (what, true),
        None => (text, false),
    };
    match what.strip_prefix("new=") {
        Some(size) => Ok(DiskSpec { path: None, size_mib: Some(crate::cli::mebibytes(size)?), read_only }),
        None => {
            let place: Place = what.parse()?;
            Ok(DiskSpec { path: Some(place.file()?.to_string()), size_mib: None, read_only })
        }
    }
}

/// A network adapter: a port group, with `,mac=MAC` to set its address.
pub(crate) fn nic(text: &str) -> Result<NicSpec, String> {
    let (port_group, mac) = match text.rsplit_once(",mac=") {
        Some((port_group, mac)) => (port_group, Some(mac.to_owned())),
        None => (text, None),
    };
    if port_group.is_empty() {
        return Err("a port group is missing, such as \"VM Network\"".into());
    }
    Ok(NicSpec { port_group: port_group.into(), mac })
}
