//! What the routes speak of: the VMs, datastores, tasks, network and host of this host agent, put together.

use std::sync::{Arc, mpsc};

use keelson_init_control::logging::chain;
use keelson_init_control::{Boot, Request};

use crate::agent::Agent;
use crate::datastores::{Datastore, Datastores, LOCAL};
use crate::hardware;
use crate::network::Netd;
use crate::tasks::Tasks;
use crate::units::Units;
use crate::vms::{Inventory, Vms};

/// All services.
#[derive(Debug)]
pub struct Services {
    /// What all of hostd shares.
    pub agent: Arc<Agent>,
    /// init.
    pub units: Arc<Units>,
    /// netd.
    pub netd: Arc<Netd>,
    /// Tasks.
    pub tasks: Arc<Tasks>,
    /// Datastores.
    pub datastores: Arc<Datastores>,
    /// VMs.
    pub vms: Arc<Vms>,
}

/// Why the services could not be started.
#[derive(Debug, thiserror::Error)]
#[error("no thread for {what}")]
pub struct StartError {
    what: &'static str,
    #[source]
    source: std::io::Error,
}

impl Services {
    /// Starts the services. `boot` is what init told, `None` when it could not be reached. What cannot be used (a datastore, a
    /// list of VMs) is a condition of the host; only a host without threads is an error.
    pub fn start(agent: Arc<Agent>, boot: Option<&Boot>) -> Result<Arc<Self>, StartError> {
        let paths = &agent.paths;
        let persistent = boot.is_some_and(|b| b.state.is_some()) || !in_ram(&paths.datastore);
        let (stores, unfinished) =
            match Datastore::open(LOCAL, &paths.datastore, if persistent { "local" } else { "ram" }) {
                Ok((store, unfinished)) => (vec![store], unfinished),
                Err(e) => {
                    agent.conditions.set(
                        "datastore-inaccessible",
                        chain(&e),
                        "repair the state partition, then restart the management agents or the host",
                    );
                    (Vec::new(), Vec::new())
                }
            };
        let datastores = Arc::new(Datastores::new(stores));
        let inventory = Inventory::open(paths.vms_file(), &datastores, &unfinished, &agent.conditions);
        let tasks = Tasks::new(paths.state.join("tasks.json"));
        let netd = Arc::new(Netd::at(paths.netd_socket()));
        let (tended, to_tend) = mpsc::channel();
        let units = Units::follow(paths.init_socket(), tended.clone())
            .map_err(|source| StartError { what: "init's events", source })?;
        let boot_id = boot.map_or_else(hardware::boot_id, |b| b.boot_id.clone());
        let vms = Vms::new(
            Arc::clone(&agent),
            Arc::clone(&units),
            Arc::clone(&netd),
            Arc::clone(&datastores),
            Arc::clone(&tasks),
            inventory,
            boot_id,
            tended,
        );
        // The kernel's copy of the host's name does not outlive the boot.
        let name = agent.hostname();
        if let Err(problem) = units.tell("the host's name is not in force", &Request::SetHostname { name }) {
            log::warn!("{problem}");
        }
        vms.tend(to_tend).map_err(|source| StartError { what: "VMs that ended", source })?;
        Ok(Arc::new(Self { agent, units, netd, tasks, datastores, vms }))
    }
}

/// Whether a directory's file system is memory: gone at power-off. The nearest parent that exists is asked.
fn in_ram(path: &std::path::Path) -> bool {
    let existing = path.ancestors().find(|p| p.exists());
    existing.and_then(|p| nix::sys::statfs::statfs(p).ok()).is_some_and(|s| {
        let kind = s.filesystem_type();
        kind == nix::sys::statfs::TMPFS_MAGIC || kind.0 as u64 == RAMFS_MAGIC
    })
}

/// ramfs (and an initramfs that is one); nix has no name for it.
const RAMFS_MAGIC: u64 = 0x8584_58f6;
