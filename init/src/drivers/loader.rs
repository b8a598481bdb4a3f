//! Loading modules: each once, what it needs first, from several threads.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};

use nix::errno::Errno;

use super::tables::Tables;
use crate::sys;

#[derive(Debug, Clone, Copy)]
enum Status {
    Loading,
    Loaded,
    Failed(Errno),
}

/// Loads from one directory of modules.
#[derive(Debug)]
pub(crate) struct Loader {
    pub(crate) tables: Tables,
    dir: PathBuf,
    states: Mutex<HashMap<String, Status>>,
    changed: Condvar,
}

impl Loader {
    /// For the running kernel.
    pub(crate) fn new() -> Self {
        let release = nix::sys::utsname::uname().map(|u| u.release().to_os_string()).unwrap_or_default();
        let dir = PathBuf::from("/lib/modules").join(release);
        Self { tables: Tables::read(&dir), dir, states: Mutex::default(), changed: Condvar::new() }
    }

    /// Loads a module with all that it needs. One that is built in, or that the image does not carry, is no error.
    pub(crate) fn load(&self, name: &str) -> Result<(), Errno> {
        let mut own = Ok(());
        for module in self.tables.order(name) {
            let done = self.load_one(&module);
            if module == name {
                own = done;
            } else if let Err(e) = done {
                log::debug!("driver {module}, which {name} needs or wishes, is not loaded: {}", e.desc());
            }
        }
        own
    }

    fn load_one(&self, name: &str) -> Result<(), Errno> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match states.get(name) {
                Some(Status::Loaded) => return Ok(()),
                Some(Status::Failed(e)) => return Err(*e),
                None => break,
                // Another thread is at it; a module is only marked while the kernel loads it, so this ends.
                Some(Status::Loading) => {
                    states = self.changed.wait(states).unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
        states.insert(name.to_owned(), Status::Loading);
        drop(states);
        let done = self.insert(name);
        let status = match done {
            Ok(()) => Status::Loaded,
            Err(e) => Status::Failed(e),
        };
        self.states.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), status);
        self.changed.notify_all();
        done
    }

    fn insert(&self, name: &str) -> Result<(), Errno> {
        let path = self.tables.path(name).ok_or(Errno::ENOENT)?;
        let file = File::open(self.dir.join(path))
            .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
        let compressed = !path.ends_with(".ko");
        match sys::module::load(&file, compressed, c"") {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e),
        }
        // The image lies in memory, and what is loaded is not unloaded.
        let _ = std::fs::remove_file(self.dir.join(path));
        Ok(())
    }
}
