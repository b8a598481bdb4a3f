//! The state of a vCPU as it travels: all that KVM tells of it.
//!
//! Time: the time-stamp counter goes on from where it stood, so for a guest no time has passed; all vCPUs keep the exact distances that their
//! counters had (KVM_VCPU_TSC_OFFSET), where KVM can set them.

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, KvmNestedStateBuffer, VcpuFd};
use serde::{Deserialize, Serialize};

use super::{KvmError, doing};
use crate::devices::saved::{BadState, from_body, to_body, versioned};

/// The kind of the section, of which each vCPU has one.
pub const KIND: &str = "vcpu";

const IA32_TSC: u32 = 0x10;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Setting one of these makes KVM write the wall clock to where the guest wanted it when it last asked; that memory may have another use
/// since, and nothing is read back from them.
const WALL_CLOCKS: [u32; 2] = [0x11, 0x4b56_4d00];
/// As many as one call takes for certain.
const MSRS_AT_ONCE: usize = 128;
/// The length of an XSAVE area without features that a process must ask for (AMX); we do not ask.
const XSAVE: usize = 4096;

/// What travels of a vCPU. Structures of KVM travel as their bytes: their layouts are the kernel's ABI.
#[derive(Clone, Serialize, Deserialize)]
pub struct VcpuV1 {
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// Of a guest with PAE paging, where KVM tells them (KVM_CAP_SREGS2).
    pdptrs: Option<[u64; 4]>,
    xsave: Vec<u8>,
    xcrs: Option<kvm_xcrs>,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// Index and value, without those that have fields of their own.
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    tsc: u64,
    tsc_khz: Option<u32>,
    /// What KVM adds to the host's counter; only differences between vCPUs mean anything elsewhere.
    tsc_offset: Option<u64>,
    tsc_deadline: Option<u64>,
    /// KVM's nested state, when the guest has a guest.
    nested: Vec<u8>,
}

versioned!(VcpuV1 = 1, for tests VcpuV0 = 0 {
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    pdptrs: Option<[u64; 4]>,
    xsave: Vec<u8>,
    xcrs: Option<kvm_xcrs>,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    tsc: u64,
    tsc_khz: Option<u32>,
    tsc_offset: Option<u64>,
    tsc_deadline: Option<u64>,
} without { nested = Vec::<u8>::new() });

impl std::fmt::Debug for VcpuV1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VcpuV1 {{ rip: {:#x}, msrs: {} }}", self.regs.rip, self.msrs.len())
    }
}

/// What this host's KVM can tell about vCPUs, asked once.
#[derive(Debug, Clone)]
pub struct VcpuAbilities {
    msrs: Vec<u32>,
    sregs2: bool,
    xcrs: bool,
    nested: bool,
    khz: bool,
}

impl VcpuAbilities {
    /// Asks KVM.
    pub fn new(kvm: &Kvm) -> Result<Self, KvmError> {
        let list = kvm.get_msr_index_list().map_err(doing("list its model-specific registers"))?;
        let own = [IA32_TSC, IA32_TSC_DEADLINE];
        let msrs = list.as_slice().iter().filter(|i| !own.contains(i) && !WALL_CLOCKS.contains(i)).copied();
        Ok(Self {
            msrs: msrs.collect(),
            sregs2: kvm.check_extension_raw(kvm_bindings::KVM_CAP_SREGS2.into()) > 0,
            xcrs: kvm.check_extension(Cap::Xcrs),
            nested: kvm.check_extension(Cap::NestedState),
            khz: kvm.check_extension(Cap::GetTscKhz),
        })
    }
}

/// The state of a vCPU that is not in the guest and owes no exit an answer. Called on the vCPU's thread.
pub fn save(vcpu: &VcpuFd, can: &VcpuAbilities) -> Result<VcpuV1, KvmError> {
    // First, since asking makes KVM take in a pending INIT or SIPI.
    let mp_state = vcpu.get_mp_state().map_err(doing("tell whether a vCPU is halted"))?;
    let sregs = vcpu.get_sregs().map_err(doing("read a vCPU's system registers"))?;
    let pdptrs = can.sregs2.then(|| crate::sys::pdptrs(vcpu)).transpose();
    let xsave = vcpu.get_xsave().map_err(doing("read a vCPU's extended state"))?;
    let msrs = read_msrs(vcpu, &can.msrs);
    let one = |index| read_msrs(vcpu, &[index]).first().map(|(_, value)| *value);
    Ok(VcpuV1 {
        cpuid: vcpu
            .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(doing("tell a vCPU's features"))?
            .as_slice()
            .to_vec(),
        mp_state,
        regs: vcpu.get_regs().map_err(doing("read a vCPU's registers"))?,
        sregs,
        pdptrs: pdptrs.map_err(doing("read a vCPU's page-directory pointers"))?.flatten(),
        xsave: xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect(),
        xcrs: can
            .xcrs
            .then(|| vcpu.get_xcrs())
            .transpose()
            .map_err(doing("read a vCPU's extended control registers"))?,
        debug_regs: vcpu.get_debug_regs().map_err(doing("read a vCPU's debug registers"))?,
        lapic: vcpu.get_lapic().map_err(doing("read a local APIC"))?,
        msrs,
        events: vcpu.get_vcpu_events().map_err(doing("read a vCPU's pending events"))?,
        tsc: one(IA32_TSC).unwrap_or_default(),
        tsc_khz: can.khz.then(|| vcpu.get_tsc_khz().ok()).flatten(),
        tsc_offset: crate::sys::tsc_offset(vcpu),
        tsc_deadline: one(IA32_TSC_DEADLINE),
        nested: if can.nested { nested(vcpu)? } else { vec![] },
    })
}

/// The guest of a guest, when there is one.
fn nested(vcpu: &VcpuFd) -> Result<Vec<u8>, KvmError> {
    let what = "read a vCPU's nested state";
    let mut buffer = Box::new(KvmNestedStateBuffer::empty());
    match vcpu.nested_state(&mut buffer).map_err(doing(what))? {
        None => Ok(vec![]),
        Some(_) => to_body(&*buffer).map_err(|_| doing(what)(kvm_ioctls::Error::new(libc::EINVAL))),
    }
}

/// The registers that KVM tells; one that it lists and then does not tell (it depends on the vCPU's features) is left out.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Vec<(u32, u64)> {
    let mut read = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let (now, _) = rest.split_at(rest.len().min(MSRS_AT_ONCE));
        let entries: Vec<_> =
            now.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let Ok(mut msrs) = Msrs::from_entries(&entries) else { break };
        // KVM stops at the first that it does not tell.
        let count = vcpu.get_msrs(&mut msrs).unwrap_or(0).min(now.len());
        read.extend(msrs.as_slice().iter().take(count).map(|entry| (entry.index, entry.data)));
        let skipped = if count < now.len() { count + 1 } else { count };
        rest = rest.get(skipped..).unwrap_or_default();
    }
    read
}

/// Makes a new vCPU what the saved one was, but for its time: see [`restore_time`].
pub fn restore(vcpu: &VcpuFd, saved: &VcpuV1, can: &VcpuAbilities) -> Result<(), RestoreError> {
    let cpuid = CpuId::from_entries(&saved.cpuid)
        .map_err(|_| BadState::new("cpuid", format!("{} leaves are too many", saved.cpuid.len())))?;
    vcpu.set_cpuid2(&cpuid).map_err(doing("take the saved processor's features"))?;
    if let Some(khz) = saved.tsc_khz
        && vcpu.get_tsc_khz().ok() != Some(khz)
        && let Err(e) = vcpu.set_tsc_khz(khz)
    {
        log::warn!("the guest's time-stamp counter ran at {khz} kHz, this host cannot do that: {e}");
    }
    vcpu.set_mp_state(saved.mp_state).map_err(doing("set whether a vCPU is halted"))?;
    vcpu.set_regs(&saved.regs).map_err(doing("set a vCPU's registers"))?;
    vcpu.set_sregs(&saved.sregs).map_err(doing("set a vCPU's system registers"))?;
    if let Some(pdptrs) = saved.pdptrs
        && can.sregs2
    {
        crate::sys::set_pdptrs(vcpu, pdptrs).map_err(doing("set a vCPU's page-directory pointers"))?;
    }
    if let Some(xcrs) = &saved.xcrs {
        vcpu.set_xcrs(xcrs).map_err(doing("set a vCPU's extended control registers"))?;
    }
    crate::sys::set_xsave(vcpu, &xsave(&saved.xsave)?).map_err(doing("set a vCPU's extended state"))?;
    vcpu.set_debug_regs(&saved.debug_regs).map_err(doing("set a vCPU's debug registers"))?;
    vcpu.set_lapic(&saved.lapic).map_err(doing("set a local APIC"))?;
    write_msrs(vcpu, &saved.msrs)?;
    if !saved.nested.is_empty() {
        let buffer: Box<KvmNestedStateBuffer> = Box::new(from_body(&saved.nested)?);
        vcpu.set_nested_state(&buffer).map_err(doing("take the state of the guest's guest"))?;
    }
    vcpu.set_vcpu_events(&saved.events).map_err(doing("set a vCPU's pending events"))?;
    Ok(())
}

/// Why a vCPU does not become what it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// KVM refuses.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The state cannot be.
    #[error(transparent)]
    State(#[from] BadState),
}

fn xsave(bytes: &[u8]) -> Result<kvm_xsave, BadState> {
    if bytes.len() != XSAVE {
        return Err(BadState::new("xsave", format!("{} bytes, not {XSAVE}", bytes.len())));
    }
    let mut xsave = kvm_xsave::default();
    for (word, four) in xsave.region.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes(four.try_into().unwrap_or_default());
    }
    Ok(xsave)
}

/// Sets the registers. One that KVM does not take is no matter when it holds that value anyway (a feature that is off).
fn write_msrs(vcpu: &VcpuFd, saved: &[(u32, u64)]) -> Result<(), RestoreError> {
    let mut rest = saved;
    while !rest.is_empty() {
        let (now, _) = rest.split_at(rest.len().min(MSRS_AT_ONCE));
        let entries: Vec<_> =
            now.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
        let msrs = Msrs::from_entries(&entries).map_err(|e| BadState::new("msrs", format!("{e:?}")))?;
        let count = vcpu.set_msrs(&msrs).unwrap_or(0).min(now.len());
        let mut done = count;
        if let Some(&(index, value)) = now.get(count) {
            if read_msrs(vcpu, &[index]) != [(index, value)] {
                let problem = format!("this host's KVM does not take {value:#x} for register {index:#x}");
                return Err(BadState::new("msrs", problem).into());
            }
            done += 1;
        }
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(())
}

/// Lets the time of all vCPUs go on from where it stood. Called when everything else is restored.
pub fn restore_time(vcpus: &[(VcpuFd, VcpuV1)]) -> Result<(), RestoreError> {
    let Some((first, first_saved)) = vcpus.first() else { return Ok(()) };
    // One value for all: written at one moment, KVM keeps them in step even where offsets cannot be set.
    for (vcpu, _) in vcpus {
        write_msrs(vcpu, &[(IA32_TSC, first_saved.tsc)])?;
    }
    if let (Some(base), Some(saved_base)) = (crate::sys::tsc_offset(first), first_saved.tsc_offset) {
        for (vcpu, saved) in vcpus {
            if let Some(saved) = saved.tsc_offset {
                let offset = base.wrapping_add(saved.wrapping_sub(saved_base));
                crate::sys::set_tsc_offset(vcpu, offset).map_err(doing("set a vCPU's time-stamp counter"))?;
            }
        }
    }
    for (vcpu, saved) in vcpus {
        if let Some(deadline) = saved.deadline() {
            write_msrs(vcpu, &[(IA32_TSC_DEADLINE, deadline)])?;
        }
    }
    Ok(())
}

impl VcpuV1 {
    /// When the local APIC's timer is to fire. A deadline that has passed reads as 0, also while its interrupt is still on the way to the
    /// APIC and so in no register: it is armed again for now, and a guest gets one interrupt too many rather than one too few.
    fn deadline(&self) -> Option<u64> {
        const LVT_TIMER: usize = 0x320;
        const MODE_DEADLINE: u32 = 0b10 << 17;
        const MODE: u32 = 0b11 << 17;
        const MASKED: u32 = 1 << 16;
        let mut timer = [0; 4];
        for (to, from) in timer.iter_mut().zip(self.lapic.regs.iter().skip(LVT_TIMER)) {
            let [byte] = from.to_le_bytes();
            *to = byte;
        }
        let timer = u32::from_le_bytes(timer);
        let armed = timer & MODE == MODE_DEADLINE && timer & MASKED == 0;
        match self.tsc_deadline? {
            0 if armed => Some(self.tsc),
            deadline => Some(deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::saved::Versioned;
    use proptest::prelude::*;

    fn sample() -> VcpuV1 {
        VcpuV1 {
            cpuid: vec![kvm_cpuid_entry2 {
                function: 1,
                eax: 2,
                ebx: 3,
                ecx: 4,
                edx: 5,
                ..Default::default()
            }],
            mp_state: kvm_mp_state { mp_state: 1 },
            regs: kvm_regs { rax: 1, rip: 0x1000, rflags: 2, ..Default::default() },
            sregs: kvm_sregs {
                cr0: 0x11,
                cr3: 0x2000,
                efer: 0x500,
                apic_base: 0xfee0_0900,
                ..Default::default()
            },
            pdptrs: Some([1, 2, 3, 4]),
            xsave: (0..XSAVE).map(|n| n as u8).collect(),
            xcrs: Some(kvm_xcrs { nr_xcrs: 1, ..Default::default() }),
            debug_regs: kvm_debugregs { dr6: 0xffff_0ff0, dr7: 0x400, ..Default::default() },
            lapic: kvm_lapic_state { regs: std::array::from_fn(|n| n as i8) },
            msrs: vec![(0xc000_0080, 0x500), (0x1a0, 1)],
            events: kvm_vcpu_events { flags: 1, ..Default::default() },
            tsc: 0x1234_5678_9abc,
            tsc_khz: Some(2_445_404),
            tsc_offset: Some(u64::MAX),
            tsc_deadline: Some(7),
            nested: vec![],
        }
    }

    #[test]
    fn the_layout_is_the_golden_one() {
        crate::state::golden::check(KIND, &sample());
    }

    #[test]
    fn the_version_before_is_read_and_written() {
        let old = sample().encode(VcpuV1::PREVIOUS).unwrap();
        let again = VcpuV1::decode(VcpuV1::PREVIOUS, &old).unwrap();
        assert_eq!(again.encode(VcpuV1::VERSION).unwrap(), sample().encode(VcpuV1::VERSION).unwrap());
        let nested = VcpuV1 { nested: vec![1], ..sample() };
        assert_eq!(nested.encode(VcpuV1::PREVIOUS).unwrap_err().field, "nested");
        assert_eq!(VcpuV1::decode(9, &old).unwrap_err().field, "version");
    }

    #[test]
    fn a_timer_interrupt_on_its_way_is_not_lost() {
        let armed = |timer: u32, tsc_deadline| {
            let mut vcpu = VcpuV1 { tsc: 50, tsc_deadline, ..sample() };
            for (at, byte) in (0x320..).zip(timer.to_le_bytes()) {
                vcpu.lapic.regs[at] = byte as i8;
            }
            vcpu.deadline()
        };
        assert_eq!(armed(0b10 << 17 | 0xec, Some(0)), Some(50));
        assert_eq!(armed(0b10 << 17 | 0xec, Some(99)), Some(99));
        assert_eq!(armed(0b10 << 17 | 1 << 16, Some(0)), Some(0), "masked");
        assert_eq!(armed(0xec, Some(0)), Some(0), "another mode");
        assert_eq!(armed(0b10 << 17, None), None);
    }

    /// A host with KVM, a machine with one vCPU.
    fn vcpu() -> Option<(Kvm, kvm_ioctls::VmFd, VcpuFd)> {
        let kvm = Kvm::new().ok()?;
        let vm = kvm.create_vm().ok()?;
        vm.create_irq_chip().ok()?;
        let vcpu = vm.create_vcpu(0).ok()?;
        Some((kvm, vm, vcpu))
    }

    #[test]
    fn a_vcpu_becomes_what_another_was() {
        let Some((kvm, _vm, vcpu)) = vcpu() else { return eprintln!("SKIPPED: no KVM") };
        let can = VcpuAbilities::new(&kvm).unwrap();
        let processor = crate::kvm::Processor::new(&kvm, 1, &Default::default()).unwrap();
        let entry = crate::kvm::Entry::Protected { eip: 0x1234, start_info: 0x5678 };
        crate::kvm::set_up(&vcpu, 0, &processor, Some(entry)).unwrap();
        let saved = save(&vcpu, &can).unwrap();
        let (_, _vm2, other) = self::vcpu().unwrap();
        restore(&other, &saved, &can).unwrap();
        let pair = [(other, saved)];
        restore_time(&pair).unwrap();
        let [(other, saved)] = &pair;
        let again = save(other, &can).unwrap();
        assert_eq!((again.regs, again.sregs, &again.msrs), (saved.regs, saved.sregs, &saved.msrs));
        assert_eq!((&again.xsave, again.lapic, again.events), (&saved.xsave, saved.lapic, saved.events));
        assert!(again.tsc >= saved.tsc, "time does not go back");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// KVM refuses what cannot be, or takes it; nothing of ours panics.
        #[test]
        fn a_random_section_does_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8), cut: Option<prop::sample::Index>) {
            let mut bytes = sample().encode(VcpuV1::VERSION).unwrap();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Ok(state) = VcpuV1::decode(VcpuV1::VERSION, &bytes)
                && let Some((kvm, _vm, vcpu)) = vcpu()
            {
                let can = VcpuAbilities::new(&kvm).unwrap();
                let restored = restore(&vcpu, &state, &can);
                if restored.is_ok() {
                    let _ = restore_time(&[(vcpu, state)]);
                }
            }
        }
    }
}
