//! A lease that outlives netd's process: written to /run, read back after a restart, void after a reboot.

use std::path::{Path, PathBuf};

use keelson_netcfg_control::MacAddr;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::dhcp::machine::Lease;
use crate::store;

#[derive(Serialize, Deserialize)]
struct SavedLease {
    boot_id: String,
    mac: MacAddr,
    lease: Lease,
}

fn path(run: &Path, adapter: &str) -> PathBuf {
    run.join(format!("lease-{adapter}.json"))
}

/// Writes the lease, or removes the file when there is none.
pub(crate) fn save(run: &Path, adapter: &str, mac: MacAddr, lease: Option<&Lease>) {
    let path = path(run, adapter);
    let done = match lease {
        Some(lease) => {
            serde_json::to_vec(&SavedLease { boot_id: clock::boot_id(), mac, lease: lease.clone() })
                .map_err(std::io::Error::from)
                .and_then(|bytes| store::write_atomically(&path, &bytes))
        }
        None => std::fs::remove_file(&path)
            .or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) }),
    };
    if let Err(e) = done {
        log::warn!(
            "the lease of {adapter} could not be kept in {}: {e}; after a restart of netd it is asked for anew",
            path.display()
        );
    }
}

/// The lease of this boot and this MAC address, if there is one that has not ended.
pub(crate) fn load(run: &Path, adapter: &str, mac: MacAddr) -> Option<Lease> {
    let bytes = std::fs::read(path(run, adapter)).ok()?;
    let saved: SavedLease = serde_json::from_slice(&bytes).ok()?;
    let current = saved.boot_id == clock::boot_id() && saved.mac == mac;
    let now = clock::boottime();
    Some(saved.lease).filter(|l| current && l.ends_at.is_none_or(|end| now < end))
}
