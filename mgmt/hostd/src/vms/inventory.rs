//! Which VMs this host has: `vms.toml` lists the directories of the registered ones, each directory's `vm.toml` says the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use keelson_api::{Fault, Problem};
use keelson_init_control::logging::chain;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::document::{LastRun, VmDocument};
use crate::conditions::Conditions;
use crate::datastores::{DatastorePath, Datastores, Directory};
use crate::store::{self, Document, Found};

/// `vms.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Register {
    schema: u32,
    #[serde(default, rename = "vm")]
    vms: Vec<Registered>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registered {
    id: Uuid,
    directory: String,
}

impl Document for Register {
    const SCHEMA: u32 = 1;
    fn validate(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for vm in &self.vms {
            DatastorePath::parse(&vm.directory).map_err(|e| e.to_string())?;
            if !seen.insert(vm.id) {
                return Err(format!("the VM {} is listed twice", vm.id));
            }
        }
        Ok(())
    }
}

/// A registered VM.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its directory.
    pub directory: DatastorePath,
    /// What it is; why that is not known where its file cannot be read.
    pub document: Result<VmDocument, Problem>,
    /// How it ran last.
    pub last_run: Option<LastRun>,
}

impl Entry {
    /// What to call the VM: its name, or its id where that is not known.
    pub fn name(&self, id: Uuid) -> String {
        self.document.as_ref().map_or_else(|_| id.to_string(), |d| d.name.clone())
    }
}

/// The registered VMs.
#[derive(Debug)]
pub struct Inventory {
    file: PathBuf,
    /// Set when `vms.toml` cannot be used: then it is not written over.
    broken: Option<String>,
    entries: Mutex<BTreeMap<Uuid, Entry>>,
}

impl Inventory {
    /// Reads `vms.toml` at `file` and each VM's directory. `unfinished` are VMs whose making was cut off: they are unregistered.
    pub fn open(
        file: PathBuf,
        datastores: &Datastores,
        unfinished: &[Uuid],
        conditions: &Conditions,
    ) -> Self {
        let mut broken = None;
        let register = match store::load::<Register>(&file) {
            Ok(Found::Good(register)) => register,
            Ok(Found::Missing) => Register { schema: Register::SCHEMA, vms: Vec::new() },
            Ok(Found::Previous { document, why }) => {
                let message =
                    format!("{} cannot be used: {why}; its previous version is in force", file.display());
                conditions.set("vms-file", message, "look whether all VMs are listed");
                document
            }
            Err(e) => {
                let why = chain(&e);
                conditions.set(
                    "vms-file",
                    why.clone(),
                    "repair or remove the file; until then no VM is listed and none can be made",
                );
                broken = Some(why);
                Register { schema: Register::SCHEMA, vms: Vec::new() }
            }
        };
        let mut entries = BTreeMap::new();
        for vm in register.vms {
            let Ok(directory) = DatastorePath::parse(&vm.directory) else { continue };
            let opened = open(datastores, &directory);
            if unfinished.contains(&vm.id) && opened.is_err() {
                continue;
            }
            let document = opened
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|d| VmDocument::load(d, &vm.directory))
                .and_then(|document| {
                    if document.id == vm.id {
                        return Ok(document);
                    }
                    Err(Problem::new(
                        Fault::SystemError,
                        format!("`{}` holds the VM {}, not {}", vm.directory, document.id, vm.id),
                    )
                    .remedy("delete the entry: no file is removed"))
                });
            if let Err(problem) = &document {
                log::warn!("the VM {} cannot be used: {problem}", vm.id);
            }
            let last_run = opened.ok().and_then(|d| LastRun::load(&d));
            entries.insert(vm.id, Entry { directory, document, last_run });
        }
        let inventory = Self { file, broken, entries: Mutex::new(entries) };
        if !unfinished.is_empty()
            && let Err(e) = inventory.save(&inventory.lock())
        {
            log::warn!("{e}");
        }
        inventory
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, entries: &BTreeMap<Uuid, Entry>) -> Result<(), Problem> {
        let failed = |why: String, full: bool| {
            let fault = if full { Fault::NoDiskSpace } else { Fault::SystemError };
            Problem::new(fault, format!("the list of VMs could not be written: {why}"))
                .remedy("free space on the state partition, or repair the file; see the host's conditions")
        };
        if let Some(why) = &self.broken {
            return Err(failed(why.clone(), false));
        }
        let vms = entries
            .iter()
            .map(|(id, e)| Registered { id: *id, directory: e.directory.to_string() })
            .collect();
        store::save(&self.file, &Register { schema: Register::SCHEMA, vms }, 0o600)
            .map_err(|e| failed(chain(&e), e.is_no_space()))
    }

    /// All VMs.
    pub fn all(&self) -> Vec<(Uuid, Entry)> {
        self.lock().iter().map(|(id, e)| (*id, e.clone())).collect()
    }

    /// One VM.
    pub fn get(&self, id: Uuid) -> Result<Entry, Problem> {
        self.lock().get(&id).cloned().ok_or_else(|| {
            Problem::new(Fault::NotFound, format!("there is no VM {id}")).remedy("list the VMs")
        })
    }

    /// The VM of that name, whatever the case of its letters.
    pub fn named(&self, name: &str) -> Option<Uuid> {
        let entries = self.lock();
        entries
            .iter()
            .find(|(_, e)| e.document.as_ref().is_ok_and(|d| d.name.eq_ignore_ascii_case(name)))
            .map(|(id, _)| *id)
    }

    /// Whether another VM than `but` has this MAC address, and which.
    pub fn with_mac(&self, mac: &str, but: Option<Uuid>) -> Option<String> {
        let entries = self.lock();
        let mut others =
            entries.iter().filter(|(id, _)| Some(**id) != but).filter_map(|(_, e)| e.document.as_ref().ok());
        others.find(|d| d.nics.iter().any(|n| n.mac.eq_ignore_ascii_case(mac))).map(|d| d.name.clone())
    }

    /// Adds a VM. The name is checked again: two could have come at once.
    pub fn add(&self, document: VmDocument, directory: DatastorePath) -> Result<(), Problem> {
        if self.named(&document.name).is_some() {
            return Err(duplicate_name(&document.name));
        }
        let mut entries = self.lock();
        let id = document.id;
        entries.insert(id, Entry { directory, document: Ok(document), last_run: None });
        self.save(&entries).inspect_err(|_| drop(entries.remove(&id)))
    }

    /// Takes a VM out.
    pub fn remove(&self, id: Uuid) -> Result<(), Problem> {
        let mut entries = self.lock();
        let Some(entry) = entries.remove(&id) else { return Ok(()) };
        self.save(&entries).inspect_err(|_| drop(entries.insert(id, entry)))
    }

    /// Puts a VM's new description in place of the old one (it is written already).
    pub fn replace(&self, document: VmDocument) {
        if let Some(entry) = self.lock().get_mut(&document.id) {
            entry.document = Ok(document);
        }
    }

    /// Puts down how a VM ran last (it is written already).
    pub fn ran(&self, id: Uuid, last_run: LastRun) {
        if let Some(entry) = self.lock().get_mut(&id) {
            entry.last_run = Some(last_run);
        }
    }
}

/// The fault of a name that is taken.
pub(super) fn duplicate_name(name: &str) -> Problem {
    Problem::new(Fault::DuplicateName, format!("there is a VM `{name}` already"))
        .field("name")
        .remedy("choose another name; upper and lower case count as the same")
}

/// Opens a VM's directory.
pub(super) fn open(datastores: &Datastores, path: &DatastorePath) -> Result<Directory, Problem> {
    let root = datastores.get(path.datastore())?.directory()?;
    root.descend(path.parts()).map_err(|e| crate::problems::file(format!("`{path}` could not be opened"), &e))
}
