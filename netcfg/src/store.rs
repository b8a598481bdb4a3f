//! `network.toml`: read with its predecessor as a fallback, written so that a power cut leaves the old or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use keelson_netcfg_control::{NetworkConfig, SCHEMA};

/// Where the configuration is kept.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    folder: PathBuf,
}

/// Why a document is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("{path} cannot be read")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no network configuration")]
    Parse {
        path: String,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error(
        "{path} has the schema {schema}, and this version of Keelson knows up to {SCHEMA}: it was written by a newer one"
    )]
    Newer { path: String, schema: u32 },
    #[error("{path} is not valid")]
    Invalid {
        path: String,
        #[source]
        source: keelson_netcfg_control::ConfigError,
    },
}

/// What was found.
#[derive(Debug)]
pub(crate) enum Loaded {
    /// Nothing was ever saved.
    Nothing,
    /// The saved configuration.
    Saved(NetworkConfig),
    /// The saved configuration is unusable; the one before it, if that is usable, and why.
    Fallback(Option<NetworkConfig>, DocumentError),
}

impl Store {
    /// Keeps the configuration in `state`, or, when that folder does not exist, in `run` (memory).
    pub(crate) fn new(state: &Path, run: &Path) -> Self {
        Self { folder: if state.is_dir() { state.into() } else { run.into() } }
    }

    fn current(&self) -> PathBuf {
        self.folder.join("network.toml")
    }

    fn previous(&self) -> PathBuf {
        self.folder.join("network.toml.previous")
    }

    /// Reads the saved configuration.
    pub(crate) fn load(&self) -> Loaded {
        match (read(&self.current()), read(&self.previous())) {
            (Ok(Some(config)), _) => Loaded::Saved(config),
            (Ok(None), Ok(Some(config))) => Loaded::Saved(config), // A power cut between the two renames.
            (Ok(None), Ok(None)) => Loaded::Nothing,
            (Ok(None), Err(e)) => Loaded::Fallback(None, e),
            (Err(e), previous) => Loaded::Fallback(previous.ok().flatten(), e),
        }
    }

    /// Saves `config`; the one that was there stays as the previous one, if it is usable.
    pub(crate) fn save(&self, config: &NetworkConfig) -> io::Result<()> {
        let text = toml::to_string_pretty(config).map_err(io::Error::other)?;
        let text = format!(
            "# The network of this host. netd writes it; change it by the console or the API.\n{text}"
        );
        if matches!(read(&self.current()), Ok(Some(ref present)) if present != config) {
            let present = fs::read(self.current())?;
            write_atomically(&self.previous(), &present)?;
        }
        write_atomically(&self.current(), text.as_bytes())
    }
}

fn read(path: &Path) -> Result<Option<NetworkConfig>, DocumentError> {
    let name = path.display().to_string();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DocumentError::Read { path: name, source }),
    };
    #[derive(serde::Deserialize)]
    struct Head {
        schema: u32,
    }
    // The number first: a newer document may have fields that this version does not know, and that is not its fault.
    let newer = toml::from_str::<Head>(&text).ok().filter(|head| head.schema > SCHEMA);
    if let Some(Head { schema }) = newer {
        return Err(DocumentError::Newer { path: name, schema });
    }
    let config: NetworkConfig = toml::from_str(&text)
        .map_err(|e| DocumentError::Parse { path: name.clone(), source: Box::new(e) })?;
    config.validate().map_err(|source| DocumentError::Invalid { path: name, source })?;
    Ok(Some(config))
}

/// Temporary file, fsync, rename, fsync of the folder.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(e) = written.and_then(|()| fs::rename(&temporary, path)) {
        let _ = fs::remove_file(&temporary);
        return Err(e);
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), Path::new("/nonexistent"));
        (dir, store)
    }

    #[test]
    fn what_is_saved_is_loaded_and_the_previous_one_is_kept() {
        let (dir, store) = store();
        assert!(matches!(store.load(), Loaded::Nothing));
        let first = NetworkConfig::default();
        store.save(&first).unwrap();
        let mut second = first.clone();
        second.port_groups[0].vlan = 20;
        store.save(&second).unwrap();
        assert!(matches!(store.load(), Loaded::Saved(c) if c == second));
        for damage in ["schema = 1\nvswitches = 3", "not toml", ""] {
            fs::write(dir.path().join("network.toml"), damage).unwrap();
            assert!(matches!(store.load(), Loaded::Fallback(Some(c), _) if c == first), "{damage}");
        }
        // A usable document is not overwritten by an unusable one as the fallback.
        store.save(&second).unwrap();
        fs::write(dir.path().join("network.toml"), "garbage").unwrap();
        assert!(matches!(store.load(), Loaded::Fallback(Some(c), _) if c == first));
    }

    #[test]
    fn a_newer_schema_is_refused_by_name() {
        let (dir, store) = store();
        fs::write(dir.path().join("network.toml"), "schema = 2\nfuture = true\n").unwrap();
        let Loaded::Fallback(None, e) = store.load() else { panic!("it was used") };
        assert!(matches!(e, DocumentError::Newer { schema: 2, .. }), "{e}");
    }

    #[test]
    fn without_a_state_folder_it_works_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Path::new("/nonexistent"), dir.path());
        store.save(&NetworkConfig::default()).unwrap();
        assert!(matches!(store.load(), Loaded::Saved(_)));
    }
}
