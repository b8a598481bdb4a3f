//! The host's virtual machines.
//!
//! What a VM is stands in its directory (`document.rs`); whether it runs is init's and its monitor's to say. The host agent keeps
//! only what can be read again after it was killed.

mod change;
mod console;
mod cpu;
mod create;
mod delete;
mod document;
mod ended;
mod inventory;
mod kernel;
mod launch;
mod monitor;
mod owner;
mod power;
mod spec;

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keelson_api::{Fault, PowerState, Problem, Vm, VmDisk, VmNic};
use keelson_init_control::{UnitState, UnitStatus};
use keelson_vmm_control::{MAX_VCPUS, MachineState, Status};
use uuid::Uuid;

use crate::agent::Agent;
use crate::datastores::{Access, DatastorePath, Datastores};
use crate::hardware::{self, HOST_RESERVE_MIB};
use crate::network::Netd;
use crate::ownership::Owners;
use crate::tasks::Tasks;
use crate::units::Units;

pub use console::MAX_INPUT;
pub(crate) use cpu::{check_baseline, identity as cpu_identity};
pub use document::{Disk, FILE, HARDWARE_VERSION, LAST_RUN, LastRun, Nic, SCHEMA, VmDocument};
pub use inventory::{Entry, Inventory};
pub use kernel::{KernelError, KernelKind};
pub use spec::Limits;

/// All VMs of this host.
#[derive(Debug)]
pub struct Vms {
    agent: Arc<Agent>,
    units: Arc<Units>,
    netd: Arc<Netd>,
    datastores: Arc<Datastores>,
    tasks: Arc<Tasks>,
    inventory: Inventory,
    /// This host's takes of its VMs' registers.
    owners: Owners,
    /// VMs that are to be looked after, see [`Vms::tend`].
    tended: Sender<Uuid>,
    /// This boot of the host; `last-run.toml` names it.
    boot_id: String,
    /// Memory promised to VMs that are being powered on, in MiB: init does not know them yet.
    admitted: Mutex<BTreeMap<Uuid, u64>>,
    /// Held while a VM is admitted to power-on, and while a file of a datastore is replaced or deleted: in between, whether the file is
    /// in use must not change.
    files: Mutex<()>,
    /// One VM is made at a time, so that names and MAC addresses stay unique.
    making: Mutex<()>,
}

impl Vms {
    /// The VMs of `inventory`. What is sent by `tended` must reach [`Vms::tend`].
    #[allow(clippy::too_many_arguments)] // each is another service
    pub fn new(
        agent: Arc<Agent>,
        units: Arc<Units>,
        netd: Arc<Netd>,
        datastores: Arc<Datastores>,
        tasks: Arc<Tasks>,
        inventory: Inventory,
        boot_id: String,
        tended: Sender<Uuid>,
    ) -> Arc<Self> {
        let owners = Owners::new(agent.host_id(), boot_id.clone(), tended.clone());
        Arc::new(Self {
            agent,
            units,
            netd,
            datastores,
            tasks,
            inventory,
            owners,
            tended,
            boot_id,
            admitted: Mutex::default(),
            files: Mutex::default(),
            making: Mutex::default(),
        })
    }

    /// What a VM can have at most here.
    fn limits(&self) -> Limits {
        let threads = hardware::cpu().threads.max(1);
        let kvm = hardware::kvm();
        let vcpus = if kvm.available { threads.min(kvm.max_vcpus) } else { threads };
        let memory_mib = hardware::memory().0 >> 20;
        Limits { vcpus: vcpus.clamp(1, MAX_VCPUS), memory_mib: memory_mib.saturating_sub(HOST_RESERVE_MIB) }
    }

    /// All VMs, in name order.
    pub fn list(&self) -> Vec<Vm> {
        let mut list: Vec<Vm> =
            self.inventory.all().into_iter().filter_map(|(id, entry)| self.shown(id, &entry).ok()).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// One VM.
    pub fn get(&self, id: Uuid) -> Result<Vm, Problem> {
        let entry = self.inventory.get(id)?;
        self.shown(id, &entry)
    }

    /// VMs that are registered but whose files cannot be used, with the reason.
    pub fn inaccessible(&self) -> Vec<(DatastorePath, Problem)> {
        let all = self.inventory.all().into_iter();
        all.filter_map(|(_, e)| e.document.err().map(|problem| (e.directory, problem))).collect()
    }

    /// What powered-on VMs are configured with, in bytes.
    pub fn reserved_bytes(&self) -> u64 {
        let running = self.units.running_vms().unwrap_or_default();
        running.iter().map(|id| self.memory_of(*id)).sum::<u64>() << 20
    }

    fn memory_of(&self, id: Uuid) -> u64 {
        self.inventory.get(id).ok().and_then(|e| e.document.ok()).map_or(0, |d| d.memory_mib)
    }

    /// While this is kept no VM is admitted to power-on; one that was opens the files that it finds.
    pub fn no_power_on(&self) -> MutexGuard<'_, ()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VM that uses a file and is powered on; files of VMs that are off can be replaced.
    pub fn user_of(&self, path: &DatastorePath) -> Option<String> {
        // A document holds what was typed: `[a]b` and `[a] b` are one file.
        let same = |text: &str| DatastorePath::parse(text).is_ok_and(|p| p == *path);
        self.inventory.all().into_iter().find_map(|(id, entry)| {
            let document = entry.document.ok()?;
            let used = same(&document.kernel)
                || document.initramfs.as_deref().is_some_and(same)
                || document.disks.iter().any(|d| same(&d.path));
            // While init cannot be heard every VM may run.
            let off = || {
                self.units.vm(id).is_ok_and(|u| u.is_none_or(|u| u.state == UnitState::Ended))
                    && !self.is_admitted(id)
                    && self.must_be_nobody_elses(&document.name, &entry.directory).is_ok()
            };
            (used && !off()).then_some(document.name)
        })
    }

    /// The VM whose own files (description, run record, log, owner records) `path` is one of, or whose directory it is.
    pub fn owner_of(&self, path: &DatastorePath) -> Option<String> {
        self.inventory.all().into_iter().find_map(|(id, entry)| {
            if *path == entry.directory {
                return Some(entry.document.map_or_else(|_| id.to_string(), |d| d.name));
            }
            let (parents, name) = path.split()?;
            let own = matches!(name, FILE | LAST_RUN | document::CONSOLE_LOG) || name.starts_with("owner.");
            let inside =
                path.datastore() == entry.directory.datastore() && parents == entry.directory.parts();
            (inside && own).then(|| entry.document.map_or_else(|_| id.to_string(), |d| d.name))
        })
    }

    /// A VM's unit, while its process has not ended.
    fn unit(&self, id: Uuid) -> Result<Option<UnitStatus>, Problem> {
        Ok(self.units.vm(id)?.filter(|u| u.state != UnitState::Ended))
    }

    /// Whether a VM runs, and what its monitor says. Without init the monitor alone is asked.
    fn look(&self, id: Uuid) -> (PowerState, Option<Status>) {
        let unit = self.unit(id);
        if let Ok(None) = unit {
            return (PowerState::PoweredOff, None);
        }
        match monitor::status(&self.agent.paths.vm_control(id)) {
            Ok(status) => {
                let state = match status.state {
                    MachineState::Running => PowerState::PoweredOn,
                    MachineState::Paused => PowerState::Paused,
                    MachineState::Off => PowerState::PoweredOff,
                };
                // Off, but its process is still there: it is not off before that has ended.
                (
                    if unit.is_ok() && state == PowerState::PoweredOff {
                        PowerState::PoweredOn
                    } else {
                        state
                    },
                    Some(status),
                )
            }
            Err(_) if unit.is_ok() => (PowerState::PoweredOn, None),
            Err(_) => (PowerState::PoweredOff, None),
        }
    }

    /// Refused unless the VM is off, and known to be.
    fn must_be_off(&self, id: Uuid, entry: &Entry, to: &str) -> Result<(), Problem> {
        let name = entry.name(id);
        match self.unit(id)? {
            // A VM whose directory is gone has no owner.
            None => match self.must_be_nobody_elses(&name, &entry.directory) {
                Err(problem) if problem.fault == Fault::NotFound && entry.document.is_err() => Ok(()),
                other => other,
            },
            Some(_) => Err(Problem::new(
                Fault::InvalidPowerState,
                format!("{name} is powered on, so it cannot be {to}"),
            )
            .remedy("power it off first")),
        }
    }

    fn shown(&self, id: Uuid, entry: &Entry) -> Result<Vm, Problem> {
        let document = entry.document.clone()?;
        let (mut power_state, status) = self.look(id);
        let owner = self.owner(&entry.directory).unwrap_or_else(|problem| {
            log::warn!("whose {} is, is not known: {problem}", document.name);
            None
        });
        if power_state == PowerState::PoweredOff && self.is_elsewhere(&owner) {
            power_state = PowerState::Elsewhere;
        }
        let disks = document
            .disks
            .into_iter()
            .map(|d| VmDisk { size_bytes: self.size_of(&d.path), path: d.path, read_only: d.read_only })
            .collect();
        let nics =
            document.nics.into_iter().map(|n| VmNic { port_group: n.port_group, mac: n.mac }).collect();
        Ok(Vm {
            id,
            name: document.name,
            directory: entry.directory.to_string(),
            hardware_version: document.hardware_version,
            vcpus: document.vcpus,
            memory_mib: document.memory_mib,
            cpu: document.cpu,
            kernel: document.kernel,
            initramfs: document.initramfs,
            cmdline: document.cmdline,
            disks,
            nics,
            power_state,
            owner: owner.map(|(epoch, reading)| owner::shown(epoch, reading)),
            last_exit: entry.last_run.as_ref().and_then(|run| self.last_exit(run, power_state)),
            uptime_s: status.as_ref().map(|s| s.uptime_ms / 1000),
            memory_touched_mib: status.as_ref().map(|s| s.memory_touched_mib),
        })
    }

    /// How the last run ended. One without an end was cut off together with whoever would have written it down.
    fn last_exit(&self, run: &LastRun, now: PowerState) -> Option<String> {
        match (&run.exit, now) {
            (Some(exit), _) => Some(exit.clone()),
            (None, PowerState::PoweredOn | PowerState::Paused | PowerState::Elsewhere) => None,
            (None, PowerState::PoweredOff) if run.boot_id == self.boot_id => {
                Some("It ended while the host agent was not there; how is not known.".into())
            }
            (None, PowerState::PoweredOff) => Some("The host went down while it ran.".into()),
        }
    }

    fn size_of(&self, path: &str) -> u64 {
        let opened = self
            .datastores
            .resolve("disks", path)
            .and_then(|(path, store)| store.open_file(&path, Access::Read));
        opened.ok().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len())
    }
}

/// A new MAC address: locally administered and unicast, under 02. `taken` says which are in use.
fn new_mac(taken: impl Fn(&str) -> bool) -> Result<String, Problem> {
    // The chance of a second round is one in a billion; ten of them mean a broken generator.
    for _ in 0..10 {
        let [a, b, c, d, e] = crate::random::bytes::<5>()
            .map_err(|e| Problem::new(Fault::SystemError, e.to_string()).remedy("try again"))?;
        let mac = format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}");
        if !taken(&mac) {
            return Ok(mac);
        }
    }
    Err(Problem::new(Fault::SystemError, "no free MAC address was found").remedy("give one with the request"))
}
