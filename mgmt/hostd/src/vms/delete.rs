//! Deleting a VM that is off: its own files go, what a person put beside them stays.

use std::sync::Arc;

use keelson_api::{Fault, Problem, Task};
use uuid::Uuid;

use super::document::{CONSOLE_LOG, FILE, LAST_RUN};
use super::{Entry, Vms};
use crate::datastores::DatastorePath;
use crate::ownership::register;
use crate::problems;
use crate::tasks::{Plan, Progress};

impl Vms {
    /// Begins to delete a VM.
    pub fn delete(self: &Arc<Self>, id: Uuid, who: &str) -> Result<Task, Problem> {
        let entry = self.inventory.get(id)?;
        self.check_deletable(id, &entry)?;
        let plan =
            Plan { name: "Delete Virtual Machine", target: id.to_string(), who: who.into(), cancel: None };
        let vms = Arc::clone(self);
        self.tasks.start(plan, move |progress| vms.deleted(id, progress))
    }

    fn check_deletable(&self, id: Uuid, entry: &Entry) -> Result<(), Problem> {
        self.must_be_off(id, entry, "deleted")?;
        let Ok(document) = &entry.document else { return Ok(()) };
        for disk in document.disks.iter().filter(|d| d.own) {
            let others = self.inventory.all();
            let mut users =
                others.iter().filter(|(other, _)| *other != id).filter_map(|(_, e)| e.document.as_ref().ok());
            let own = DatastorePath::parse(&disk.path).ok();
            let same = |other: &str| own.is_some() && DatastorePath::parse(other).ok() == own;
            if let Some(user) = users.find(|d| d.disks.iter().any(|o| same(&o.path))) {
                let detail = format!("`{}` of {} is a disk of {} too", disk.path, document.name, user.name);
                return Err(
                    Problem::new(Fault::FileInUse, detail).remedy(format!("delete {} first", user.name))
                );
            }
        }
        Ok(())
    }

    fn deleted(&self, id: Uuid, progress: &Progress) -> Result<String, Problem> {
        let entry = self.inventory.get(id)?;
        self.check_deletable(id, &entry)?;
        self.await_released(id)?;
        self.must_be_settled(id, &entry.directory)?;
        let Ok(document) = entry.document else {
            if self.only_records_left(&entry.directory)? {
                self.inventory.remove(id)?;
                return Ok("What an earlier deletion had left was removed".into());
            }
            self.inventory.remove(id)?;
            return Ok(format!(
                "The VM was taken off the list; its directory `{}` could not be used and is left as it is",
                entry.directory
            ));
        };
        progress.say(10, "Removing its files");
        let failed =
            |e: std::io::Error| problems::file(format!("`{}` could not be removed", entry.directory), &e);
        let home = self.home(&entry.directory)?;
        for disk in document.disks.iter().filter(|d| d.own) {
            // Made as a file of this directory; a path that was edited to lead elsewhere is not followed.
            let path = DatastorePath::parse(&disk.path).ok().filter(|p| p.is_within(&entry.directory));
            if let Some((parents, name)) = path.as_ref().and_then(DatastorePath::split)
                && parents == entry.directory.parts()
            {
                home.remove(name).map_err(failed)?;
            }
        }
        home.remove(CONSOLE_LOG).map_err(failed)?;
        home.remove(LAST_RUN).map_err(failed)?;
        progress.say(60, "Removing its description");
        home.remove(FILE).map_err(failed)?;
        // Last: without its description it cannot be started, and until then its owners' records say whose it is.
        register::remove(&home).map_err(failed)?;
        let left = home.names().map_err(failed)?;
        if left.is_empty() {
            self.remove_home(&entry.directory)?;
        } else {
            home.sync().map_err(failed)?;
        }
        self.inventory.remove(id)?;
        let name = &document.name;
        Ok(if left.is_empty() {
            format!("{name} was deleted")
        } else {
            format!("{name} was deleted; {} other files stay in `{}`", left.len(), entry.directory)
        })
    }

    /// Removes a VM's empty directory.
    fn remove_home(&self, directory: &DatastorePath) -> Result<(), Problem> {
        let failed = |e: std::io::Error| problems::file(format!("`{directory}` could not be removed"), &e);
        let Some((parents, name)) = directory.split() else { return Ok(()) };
        let parent =
            self.datastores.get(directory.datastore())?.directory()?.descend(parents).map_err(failed)?;
        parent.remove_directory(name).and_then(|()| parent.sync()).map_err(failed)
    }

    /// A deletion that was cut off after the description went leaves owners' records: removes them, if there is nothing else.
    fn only_records_left(&self, directory: &DatastorePath) -> Result<bool, Problem> {
        let failed = |e: std::io::Error| problems::file(format!("`{directory}` could not be removed"), &e);
        let Ok(home) = self.home(directory) else { return Ok(false) };
        if !home.names().map_err(failed)?.iter().all(|name| register::is_ours(name)) {
            return Ok(false);
        }
        register::remove(&home).map_err(failed)?;
        self.remove_home(directory).map(|()| true)
    }
}
