//! Changing a VM that is off.

use keelson_api::{Problem, Vm, VmUpdate};
use uuid::Uuid;

use super::{Vms, spec};

impl Vms {
    /// Changes a VM. Either all of it is changed or nothing.
    pub fn change(&self, id: Uuid, update: &VmUpdate) -> Result<Vm, Problem> {
        let _hold = self.tasks.hold(&id.to_string(), "Reconfigure Virtual Machine")?;
        let entry = self.inventory.get(id)?;
        let mut document = entry.document.clone()?;
        self.must_be_off(id, &entry, "changed")?;
        let limits = self.limits();
        if let Some(vcpus) = update.vcpus {
            spec::check_vcpus(vcpus, limits)?;
            document.vcpus = vcpus;
        }
        if let Some(memory_mib) = update.memory_mib {
            spec::check_memory(memory_mib, limits)?;
            document.memory_mib = memory_mib;
        }
        // A changed number of vCPUs can make the present arrangement impossible.
        if update.cpu.is_some() || update.vcpus.is_some() {
            let cpu = update.cpu.as_ref().unwrap_or(&document.cpu);
            document.cpu = self.resettle_cpu(cpu, &document.cpu, document.vcpus)?;
        }
        if let Some(cmdline) = &update.cmdline {
            spec::check_cmdline(cmdline)?;
            document.cmdline.clone_from(cmdline);
        }
        if let Some(kernel) = &update.kernel {
            self.check_kernel("kernel", kernel)?;
            document.kernel.clone_from(kernel);
        }
        match update.initramfs.as_deref() {
            None => {}
            Some("") => document.initramfs = None,
            Some(initramfs) => {
                self.check_file("initramfs", initramfs)?;
                document.initramfs = Some(initramfs.to_owned());
            }
        }
        // Held until the document is in the inventory: a VM made meanwhile must not get one of these addresses.
        let _making = self.making.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(nics) = &update.nics {
            spec::check_nics(nics)?;
            self.check_port_groups(nics)?;
            document.nics = self.nics(nics, &document.nics, Some(id))?;
        }
        document.store(&self.home(&entry.directory)?, &entry.directory.to_string())?;
        self.inventory.replace(document);
        self.get(id)
    }
}
