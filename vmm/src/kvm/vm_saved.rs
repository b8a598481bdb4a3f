//! The state of what KVM keeps for the whole virtual machine: interrupt controllers, interval timer, and the clock of its guests.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::vcpu_saved::RestoreError;
use super::{KvmError, doing};
use crate::devices::saved::{BadState, versioned};

/// The kind of the section, of which there is one: instance 0.
pub const KIND: &str = "vm";

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// What travels. Structures of KVM travel as their bytes: their layouts are the kernel's ABI.
#[derive(Clone, Serialize, Deserialize)]
pub struct VmV1 {
    /// Both PICs and the I/O APIC.
    chips: Vec<kvm_irqchip>,
    /// The interval timer, where KVM has one.
    pit: Option<kvm_pit_state2>,
    /// Nanoseconds of the guests' clock (kvmclock), which goes on from there.
    clock: u64,
}

versioned!(VmV1 = 1, for tests VmV0 = 0 {
    chips: Vec<kvm_irqchip>,
    pit: Option<kvm_pit_state2>,
    clock: u64,
} without { });

impl std::fmt::Debug for VmV1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VmV1 {{ clock: {} }}", self.clock)
    }
}

/// The state while no vCPU is in the guest.
pub fn save(vm: &VmFd) -> Result<VmV1, KvmError> {
    let chips = CHIPS.map(|chip_id| {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map(|()| chip).map_err(doing("read an interrupt controller"))
    });
    Ok(VmV1 {
        chips: chips.into_iter().collect::<Result<_, _>>()?,
        pit: vm.get_pit2().ok(),
        clock: vm.get_clock().map_err(doing("read the guest's clock"))?.clock,
    })
}

/// Makes a new virtual machine what the saved one was. Its vCPUs exist already, since interrupts go to them.
pub fn restore(vm: &VmFd, saved: &VmV1) -> Result<(), RestoreError> {
    if saved.chips.iter().map(|chip| chip.chip_id).ne(CHIPS) {
        return Err(BadState::new("chips", "they are not two PICs and an I/O APIC").into());
    }
    for chip in &saved.chips {
        vm.set_irqchip(chip).map_err(doing("set an interrupt controller"))?;
    }
    if let Some(pit) = &saved.pit {
        vm.set_pit2(pit).map_err(doing("set the interval timer"))?;
    }
    let clock = kvm_clock_data { clock: saved.clock, ..Default::default() };
    vm.set_clock(&clock).map_err(doing("set the guest's clock"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::saved::Versioned;
    use kvm_ioctls::Kvm;
    use proptest::prelude::*;

    fn sample() -> VmV1 {
        let chip = |chip_id| kvm_irqchip { chip_id, ..Default::default() };
        VmV1 {
            chips: CHIPS.map(chip).to_vec(),
            pit: Some(kvm_pit_state2 { flags: 1, ..Default::default() }),
            clock: 0x1234_5678,
        }
    }

    #[test]
    fn the_layout_is_the_golden_one() {
        crate::state::golden::check(KIND, &sample());
    }

    fn vm() -> Option<VmFd> {
        let vm = Kvm::new().ok()?.create_vm().ok()?;
        vm.create_irq_chip().ok()?;
        vm.create_pit2(Default::default()).ok()?;
        Some(vm)
    }

    #[test]
    fn a_vm_becomes_what_another_was() {
        let (Some(one), Some(two)) = (vm(), vm()) else { return eprintln!("SKIPPED: no KVM") };
        let mut saved = save(&one).unwrap();
        saved.clock += 3_600_000_000_000;
        restore(&two, &saved).unwrap();
        let again = save(&two).unwrap();
        assert!(again.clock >= saved.clock, "time does not go back");
        let fixed = |state: VmV1| VmV1 { clock: 0, pit: None, ..state }.encode(1).unwrap();
        assert_eq!(fixed(again), fixed(saved.clone()));
        saved.chips.swap(0, 2);
        assert!(restore(&two, &saved).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_random_section_does_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8)) {
            let mut bytes = sample().encode(VmV1::VERSION).unwrap();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(state) = VmV1::decode(VmV1::VERSION, &bytes)
                && let Some(vm) = vm()
            {
                let _ = restore(&vm, &state);
            }
        }
    }
}
