//! Making a VM: everything is checked, then made in a hidden directory, registered, and only then given its name. What fails
//! leaves nothing behind, also when the host agent is killed half-way (the next start removes the hidden directory).

use std::sync::PoisonError;

use keelson_api::{Fault, NicSpec, Problem, Vm, VmSpec};
use uuid::Uuid;

use super::document::{Disk, HARDWARE_VERSION, Nic, SCHEMA, VmDocument};
use super::{Vms, inventory, kernel, new_mac, spec};
use crate::datastores::{Access, Datastore, DatastorePath, Directory, UNFINISHED_VM};
use crate::problems::{self, argument};

/// How many other directory names are tried when a VM's name is one already.
const MAX_SUFFIX: u32 = 100;

impl Vms {
    /// Makes a VM. It is off until it is powered on.
    pub fn create(&self, spec: &VmSpec) -> Result<Vm, Problem> {
        spec::check(spec, self.limits())?;
        let cpu = self.settle_cpu(&spec.cpu, spec.vcpus)?;
        let store = self.datastores.choose("datastore", spec.datastore.as_deref())?;
        self.check_kernel("kernel", &spec.kernel)?;
        if let Some(initramfs) = &spec.initramfs {
            self.check_file("initramfs", initramfs)?;
        }
        for (i, disk) in spec.disks.iter().enumerate() {
            if let Some(path) = &disk.path {
                self.check_disk(&format!("disks[{i}].path"), path, disk.read_only)?;
            }
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if self.inventory.named(&spec.name).is_some() {
            return Err(inventory::duplicate_name(&spec.name));
        }
        self.check_port_groups(&spec.nics)?;
        let id = Uuid::new_v4();
        let nics = self.nics(&spec.nics, &[], None)?;
        let root = store.directory()?;
        let directory = free_directory(store, &root, &spec.name)?;
        let document = VmDocument {
            schema: SCHEMA,
            id,
            name: spec.name.clone(),
            hardware_version: HARDWARE_VERSION,
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            kernel: spec.kernel.clone(),
            initramfs: spec.initramfs.clone(),
            cmdline: spec.cmdline.clone(),
            cpu,
            disks: disks(spec, &directory)?,
            nics,
        };
        let hidden = format!("{UNFINISHED_VM}{id}");
        let made = self.make(&root, &hidden, &directory, spec, document);
        if made.is_err()
            && let Err(e) = root.remove_flat(&hidden)
        {
            log::warn!("{hidden} on {} is left until the next start: {e}", store.name());
        }
        made?;
        log::info!("VM {id} `{}` was made", spec.name);
        self.get(id)
    }

    fn make(
        &self,
        root: &Directory,
        hidden: &str,
        directory: &DatastorePath,
        spec: &VmSpec,
        document: VmDocument,
    ) -> Result<(), Problem> {
        let failed = |e: std::io::Error| problems::file(format!("`{directory}` could not be made"), &e);
        let home = root.make(hidden).map_err(failed)?;
        for (i, disk) in spec.disks.iter().enumerate() {
            let Some(size) = disk.size_mib else { continue };
            let file = home.create(&disk_name(i)).map_err(failed)?;
            file.set_len(size << 20).and_then(|()| file.sync_all()).map_err(|e| {
                problems::file(format!("a disk of {size} MiB could not be made"), &e)
                    .field(format!("disks[{i}].size_mib"))
            })?;
        }
        document.store(&home, &directory.to_string())?;
        home.sync().map_err(failed)?;
        let id = document.id;
        // Registered before it has its name: an entry without a directory is taken out at the next start, a directory without an
        // entry would stay.
        self.inventory.add(document, directory.clone())?;
        let name = directory.split().map(|(_, name)| name).unwrap_or_default();
        if let Err(e) = root.rename_new(hidden, name).and_then(|()| root.sync()) {
            self.inventory.remove(id)?;
            return Err(failed(e));
        }
        Ok(())
    }

    /// Checks that a field names a file that is there.
    pub(super) fn check_file(&self, field: &str, text: &str) -> Result<std::fs::File, Problem> {
        let (path, store) = self.datastores.resolve(field, text)?;
        store.open_file(&path, Access::Read).map_err(|e| missing_as_argument(e, field))
    }

    /// Checks that a field names a kernel.
    pub(super) fn check_kernel(&self, field: &str, text: &str) -> Result<(), Problem> {
        let file = self.check_file(field, text)?;
        let found = kernel::identify(&file)
            .map_err(|e| problems::file(format!("`{text}` could not be read"), &e).field(field))?;
        match found {
            Ok(_) => Ok(()),
            Err(why) => Err(argument(
                field,
                format!("`{text}` is no kernel that can be booted: {why}"),
                "give a bzImage (Debian's /boot/vmlinuz-* is one) or an ELF with a PVH note",
            )),
        }
    }

    fn check_disk(&self, field: &str, text: &str, read_only: bool) -> Result<(), Problem> {
        let (path, store) = self.datastores.resolve(field, text)?;
        let access = if read_only { Access::Read } else { Access::ReadWrite };
        let file = store.open_file(&path, access).map_err(|e| missing_as_argument(e, field))?;
        let size = file
            .metadata()
            .map_err(|e| problems::file(format!("`{text}` could not be read"), &e).field(field))?
            .len();
        if size == 0 || size % 512 != 0 {
            return Err(argument(
                field,
                format!("`{text}` of {size} bytes is no raw disk image"),
                "its size must be a multiple of 512 bytes, and not 0",
            ));
        }
        Ok(())
    }

    /// Checks that the port groups exist. Without netd that is found out at power-on.
    pub(super) fn check_port_groups(&self, nics: &[NicSpec]) -> Result<(), Problem> {
        if nics.is_empty() {
            return Ok(());
        }
        let existing = match self.netd.port_groups() {
            Ok(existing) => existing,
            Err(e) => {
                log::warn!("port groups were not checked: {e}");
                return Ok(());
            }
        };
        for (i, nic) in nics.iter().enumerate() {
            if !existing.contains(&nic.port_group) {
                let detail = format!("there is no port group `{}`", nic.port_group);
                return Err(argument(
                    format!("nics[{i}].port_group"),
                    detail,
                    &format!("this host has: {}", existing.join(", ")),
                ));
            }
        }
        Ok(())
    }

    /// Network adapters with their MAC addresses: the one that is asked for, the one that adapter had before, or a new one.
    pub(super) fn nics(
        &self,
        specs: &[NicSpec],
        before: &[Nic],
        of: Option<Uuid>,
    ) -> Result<Vec<Nic>, Problem> {
        let mut nics: Vec<Nic> = Vec::new();
        for (i, spec) in specs.iter().enumerate() {
            let mac = match (&spec.mac, before.get(i)) {
                (Some(mac), _) => {
                    if let Some(other) = self.inventory.with_mac(mac, of) {
                        return Err(Problem::new(
                            Fault::DuplicateName,
                            format!("`{mac}` is an adapter of {other} already"),
                        )
                        .field(format!("nics[{i}].mac"))
                        .remedy("give another, or leave it out: one is made"));
                    }
                    mac.to_ascii_lowercase()
                }
                (None, Some(nic))
                    if !specs
                        .iter()
                        .any(|s| s.mac.as_deref().is_some_and(|m| m.eq_ignore_ascii_case(&nic.mac))) =>
                {
                    nic.mac.clone()
                }
                (None, _) => {
                    let asked = |mac: &str| {
                        specs.iter().any(|s| s.mac.as_deref().is_some_and(|m| m.eq_ignore_ascii_case(mac)))
                    };
                    new_mac(|mac| {
                        asked(mac)
                            || nics.iter().any(|n| n.mac == mac)
                            || self.inventory.with_mac(mac, None).is_some()
                    })?
                }
            };
            nics.push(Nic { port_group: spec.port_group.clone(), mac });
        }
        Ok(nics)
    }
}

/// A file that a request names and that is not there is that field's fault, not the path's of the request.
fn missing_as_argument(mut problem: Problem, field: &str) -> Problem {
    if problem.fault == Fault::NotFound {
        problem = Problem::new(Fault::InvalidArgument, problem.detail)
            .remedy("upload it first, or correct the path");
    }
    problem.field(field)
}

fn disk_name(index: usize) -> String {
    format!("disk{index}.img")
}

fn disks(spec: &VmSpec, directory: &DatastorePath) -> Result<Vec<Disk>, Problem> {
    let disk = |(i, disk): (usize, &keelson_api::DiskSpec)| match &disk.path {
        Some(path) => Ok(Disk { path: path.clone(), read_only: disk.read_only, own: false }),
        None => {
            let path = directory.join(&disk_name(i)).map_err(|e| e.problem())?;
            Ok(Disk { path: path.to_string(), read_only: disk.read_only, own: true })
        }
    };
    spec.disks.iter().enumerate().map(disk).collect()
}

/// The directory for a VM: its name, or its name with a number when something else is called so.
fn free_directory(store: &Datastore, root: &Directory, name: &str) -> Result<DatastorePath, Problem> {
    let failed =
        |e: std::io::Error| problems::file(format!("`[{}] {name}` could not be looked at", store.name()), &e);
    for n in 0..MAX_SUFFIX {
        let candidate = if n == 0 { name.to_owned() } else { format!("{name}_{n}") };
        if root.meta(&candidate).map_err(failed)?.is_none() {
            return DatastorePath::on(store.name(), &candidate).map_err(|e| e.problem().field("name"));
        }
    }
    Err(Problem::new(
        Fault::DuplicateName,
        format!("directories `{name}` to `{name}_{}` are there already", MAX_SUFFIX - 1),
    )
    .field("name")
    .remedy("choose another name, or remove directories that are not needed"))
}

impl Vms {
    /// Opens a VM's directory.
    pub(super) fn home(&self, directory: &DatastorePath) -> Result<Directory, Problem> {
        inventory::open(&self.datastores, directory)
    }
}
