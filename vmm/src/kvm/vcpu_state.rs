//! The state in which a vCPU begins: features, model-specific registers, local APIC, and for the first one the boot entry.

use kvm_bindings::{
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID, Msrs, kvm_enable_cap, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::VcpuFd;

use super::{KvmError, Processor, doing};

/// How the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode (Linux x86 boot protocol, "64-bit boot protocol"): paging on, RSI = boot parameters.
    Long {
        /// The first instruction.
        rip: u64,
        /// The boot parameters ("zero page").
        boot_params: u64,
        /// The top-level page table, which maps at least the first 4 GiB one to one.
        page_table: u64,
        /// The segment descriptors at 0x10 (code) and 0x18 (data).
        gdt: u64,
    },
    /// 32-bit protected mode without paging (PVH): EBX = start info.
    Protected {
        /// The first instruction.
        eip: u32,
        /// The start info.
        start_info: u32,
    },
}

const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

/// Sets a new vCPU up. Only the first vCPU has an `entry`: the others wait for INIT and SIPI, as KVM makes them.
pub fn set_up(
    vcpu: &VcpuFd,
    index: u32,
    processor: &Processor,
    entry: Option<Entry>,
) -> Result<(), KvmError> {
    let tsc_khz = vcpu.get_tsc_khz().ok();
    vcpu.set_cpuid2(&processor.leaves(index, tsc_khz)?).map_err(doing("take the processor's features"))?;
    if processor.is_exact() {
        // A kernel before 5.11 does not know it: there a guest could use what it is not shown.
        let exact = kvm_enable_cap {
            cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
            args: [1, 0, 0, 0],
            ..Default::default()
        };
        if let Err(e) = vcpu.enable_cap(&exact) {
            log::debug!("this host's KVM does not enforce which of its own features are shown: {e}");
        }
    }
    // Fast string operations on; MTRRs on with write-back as the default, as firmware would leave them. A KVM that does not know
    // one of them keeps its own value, which guests get along with.
    let firmware = [(IA32_MISC_ENABLE, 1), (IA32_MTRR_DEF_TYPE, (1 << 11) | 6)];
    for (index, data) in firmware.into_iter().chain(processor.feature_msrs()) {
        let entry = kvm_msr_entry { index, data, ..Default::default() };
        let set = Msrs::from_entries(&[entry]).ok().and_then(|msrs| vcpu.set_msrs(&msrs).ok());
        if set != Some(1) {
            log::debug!("this host's KVM does not take model-specific register {index:#x}");
        }
    }
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(doing("set a vCPU's floating-point state"))?;
    connect_local_interrupts(vcpu)?;
    match entry {
        Some(entry) => enter(vcpu, entry),
        None => Ok(()),
    }
}

/// LINT0 = ExtINT (the PIC), LINT1 = NMI, as firmware leaves them (MultiProcessor Specification 1.4, 3.6.2.2).
fn connect_local_interrupts(vcpu: &VcpuFd) -> Result<(), KvmError> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    let mut lapic = vcpu.get_lapic().map_err(doing("read a local APIC"))?;
    for (at, mode) in [(LVT_LINT0, 7u32), (LVT_LINT1, 4)] {
        for (register, byte) in lapic.regs.iter_mut().skip(at).zip((mode << 8).to_le_bytes()) {
            *register = byte as _;
        }
    }
    vcpu.set_lapic(&lapic).map_err(doing("set a local APIC"))
}

fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

fn enter(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(doing("read a vCPU's system registers"))?;
    let mut regs = kvm_regs { rflags: 2, ..Default::default() };
    let data = kvm_segment { db: 1, ..flat(0x18, 3) };
    let code = flat(0x10, 11);
    let task = kvm_segment { limit: 0x67, selector: 0, type_: 11, present: 1, ..Default::default() };
    match entry {
        Entry::Long { rip, boot_params, page_table, gdt } => {
            sregs.cs = kvm_segment { l: 1, ..code };
            sregs.gdt.base = gdt;
            sregs.gdt.limit = 4 * 8 - 1;
            sregs.cr3 = page_table;
            sregs.cr4 = 1 << 5; // PAE
            sregs.cr0 = (1 << 31) | (1 << 4) | 1; // PG, ET, PE
            sregs.efer = (1 << 8) | (1 << 10); // LME, LMA
            regs.rip = rip;
            regs.rsi = boot_params;
        }
        Entry::Protected { eip, start_info } => {
            sregs.cs = kvm_segment { db: 1, ..code };
            sregs.gdt.base = 0;
            sregs.gdt.limit = 0xffff;
            sregs.cr4 = 0;
            sregs.cr0 = (1 << 4) | 1; // ET, PE
            sregs.efer = 0;
            regs.rip = u64::from(eip);
            regs.rbx = u64::from(start_info);
        }
    }
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss, sregs.tr) = (data, data, data, data, data, task);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    vcpu.set_sregs(&sregs).map_err(doing("set a vCPU's system registers"))?;
    vcpu.set_regs(&regs).map_err(doing("set a vCPU's registers"))
}
