//! A board's state: how it is collected from vCPUs, KVM and devices, and how vCPUs come back.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};

use keelson_vmm_control::StateSet;
use kvm_ioctls::{VcpuFd, VmFd};

use super::board::{Board, STOP_WITHIN};
use super::{BuildError, Parts};
use crate::devices::saved::{Piece, Saved, Versioned};
use crate::kvm::vcpu_saved::{self, RestoreError, VcpuV1};
use crate::kvm::vm_saved::{self, VmV1};
use crate::kvm::{KvmError, doing};
use crate::state::StateError;
use crate::state::sections::Sections;

/// Why a board's state cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A disk.
    #[error("the disk in PCI slot {slot} cannot be flushed")]
    Flush {
        /// The slot.
        slot: u8,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A section.
    #[error(transparent)]
    State(#[from] StateError),
    /// A vCPU's thread does not answer.
    #[error("a vCPU does not tell its state")]
    Slow,
}

/// Adds a section that no device saves.
pub(super) fn put<S: Versioned>(
    sections: &mut Sections,
    kind: &'static str,
    instance: u32,
    state: &S,
    set: StateSet,
) -> Result<(), StateError> {
    let version = S::version_in(set);
    let body = state.encode(version).map_err(|e| StateError::bad(kind, instance, e))?;
    sections.put(Piece { kind, version, body }, instance)
}

/// A device of which there is one: fresh, or as it was saved.
pub(super) fn made<T: Saved>(
    saved: &mut Option<Sections>,
    host: T::Host,
    fresh: impl FnOnce(T::Host) -> T,
) -> Result<Arc<Mutex<T>>, StateError> {
    let device = match saved {
        None => fresh(host),
        Some(saved) => saved.restore(0, host)?,
    };
    Ok(Arc::new(Mutex::new(device)))
}

impl Board {
    /// The state of everything, as sections; what disks have had answered is durable then. The board is paused.
    pub(super) fn save(&self, sections: &mut Sections, set: StateSet) -> Result<(), SaveError> {
        let pci = self.pci();
        pci.flush().map_err(|(slot, source)| SaveError::Flush { slot, source })?;
        for (id, vcpu) in self.save_vcpus()? {
            put(sections, vcpu_saved::KIND, id, &vcpu, set)?;
        }
        put(sections, vm_saved::KIND, 0, &vm_saved::save(&self.vm)?, set)?;
        pci.save(sections, set)?;
        for device in &self.devices {
            let device = device.lock().unwrap_or_else(PoisonError::into_inner);
            sections.save(&*device, 0, set)?;
        }
        Ok(())
    }

    fn save_vcpus(&self) -> Result<Vec<(u32, VcpuV1)>, SaveError> {
        let (sender, states) = channel();
        let abilities = self.abilities.clone();
        self.gate.send(Arc::new(move |id, vcpu| {
            // Nobody waits any more only when another vCPU was too slow.
            let _ = sender.send((id, vcpu_saved::save(vcpu, &abilities)));
        }));
        let collected = self.threads.iter().map(|_| match states.recv_timeout(STOP_WITHIN) {
            Ok((id, state)) => Ok((id, state?)),
            Err(_) => Err(SaveError::Slow),
        });
        let collected = collected.collect();
        self.gate.recall();
        collected
    }
}

/// The vCPUs and what KVM keeps for all of them. Devices come after them, since those may raise interrupts at once.
pub(super) fn restored_vcpus(
    parts: &Parts,
    vm: &VmFd,
    saved: &mut Sections,
) -> Result<Vec<VcpuFd>, BuildError> {
    let abilities = parts.host.abilities();
    let bad = |kind, id, e| match e {
        RestoreError::Kvm(e) => BuildError::Kvm(e),
        RestoreError::State(e) => StateError::bad(kind, id, e).into(),
    };
    let mut vcpus = Vec::new();
    for id in 0..parts.config.vcpus {
        let state: VcpuV1 = saved.take(vcpu_saved::KIND, id)?;
        let apic_id = parts.host.processor().apic_id(id);
        let vcpu = vm.create_vcpu(apic_id.into()).map_err(doing("create a vCPU"))?;
        vcpu_saved::restore(&vcpu, &state, abilities).map_err(|e| bad(vcpu_saved::KIND, id, e))?;
        vcpus.push((vcpu, state));
    }
    let state: VmV1 = saved.take(vm_saved::KIND, 0)?;
    vm_saved::restore(vm, &state).map_err(|e| bad(vm_saved::KIND, 0, e))?;
    vcpu_saved::restore_time(&vcpus).map_err(|e| bad(vcpu_saved::KIND, 0, e))?;
    Ok(vcpus.into_iter().map(|(vcpu, _)| vcpu).collect())
}
