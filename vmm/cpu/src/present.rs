//! The CPUID table of a vCPU whose processor is a settled model: exactly the model, whatever the host has.

use crate::feature::FeatureSet;
use crate::host::INTEL;
use crate::leaf::{Leaf, Register};
use crate::model::{CacheKind, Model};
use crate::topology::Topology;

/// What the host's KVM adds to a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Platform {
    /// The guest's TSC, in kHz, where KVM knows it.
    pub tsc_khz: Option<u32>,
}

/// KVM's local APIC timer counts nanoseconds (kernel, Documentation/virt/kvm/api.rst, KVM_CAP_X86_APIC_BUS_CYCLES_NS).
const APIC_BUS_HZ: u32 = 1_000_000_000;
/// Of a legacy XSAVE area and its header, in bytes.
const XSAVE_START: u32 = 576;
/// Bits of 0x8000_0001 EDX that repeat leaf 1 EDX on AMD's processors.
const AMD_REPEATED: u32 = 0x0183_f3ff;

/// The table of the vCPU with this index.
pub fn materialise(model: &Model, topology: &Topology, index: u32, platform: &Platform) -> Vec<Leaf> {
    let id = topology.apic_id(index);
    let f = |function, index, register| model.features.bits(function, index, register);
    let features = |function, index| {
        [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx].map(|r| f(function, index, r))
    };
    let intel = model.vendor == INTEL;
    let mut table = vec![Leaf::plain(1, leaf_1(model, topology, id))];
    if intel {
        // All about caches is in leaf 4.
        table.push(Leaf::plain(2, [0xff01, 0, 0, 0]));
        table.extend((0..).zip(&model.caches).map(|(n, c)| Leaf::indexed(4, n, cache(*c, topology, true))));
        table.push(Leaf::indexed(4, count(&model.caches), [0; 4]));
    }
    table.push(Leaf::plain(6, features(6, 0)));
    // EAX is the highest subleaf.
    let last = (1..=2).rev().find(|n| features(7, *n) != [0; 4]).unwrap_or(0);
    let [_, ebx, ecx, edx] = features(7, 0);
    table.push(Leaf::indexed(7, 0, [last, ebx, ecx, edx]));
    table.extend((1..=last).map(|n| Leaf::indexed(7, n, features(7, n))));
    levels(&mut table, 0xb, topology, id);
    if model.features.has("xsave") {
        xsave(&mut table, model);
    }
    if let (true, Some(khz)) = (intel, platform.tsc_khz) {
        // TSC = crystal * EBX / EAX, and the crystal is what the local APIC's timer counts.
        table.push(Leaf::plain(0x15, [APIC_BUS_HZ / 1000, khz, APIC_BUS_HZ, 0]));
        table.push(Leaf::plain(0x16, [khz / 1000, khz / 1000, 100, 0]));
    }
    let highest = table.iter().map(|l| l.function).max().unwrap_or(1);
    table.push(Leaf::plain(0, named(highest, &model.vendor)));
    kvm(&mut table, &model.features);
    extended(&mut table, model, topology, id);
    table.sort_by_key(|l| (l.function, l.index));
    table
}

fn count<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

/// Four bytes of a text, as a register holds them.
fn word(text: &str, at: usize) -> u32 {
    let byte = |n| u32::from(text.as_bytes().get(at + n).copied().unwrap_or(0));
    byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
}

fn named(highest: u32, vendor: &str) -> [u32; 4] {
    [highest, word(vendor, 0), word(vendor, 8), word(vendor, 4)]
}

fn signature(model: &Model) -> u32 {
    let extended = model.family.saturating_sub(0xf) & 0xff;
    extended << 20
        | (model.model >> 4 & 0xf) << 16
        | model.family.min(0xf) << 8
        | (model.model & 0xf) << 4
        | model.stepping & 0xf
}

fn leaf_1(model: &Model, topology: &Topology, id: u32) -> [u32; 4] {
    const HTT: u32 = 1 << 28;
    let ids = 1u32.wrapping_shl(topology.socket_shift()).min(255);
    let several = if topology.in_socket() > 1 { HTT } else { 0 };
    let line = 8; // in units of 8 bytes, for CLFLUSH
    let ebx = (id & 0xff) << 24 | ids << 16 | line << 8;
    let (ecx, edx) = (model.features.bits(1, 0, Register::Ecx), model.features.bits(1, 0, Register::Edx));
    [signature(model), ebx, ecx, edx | several]
}

/// Leaf 4 (Intel) and 0x8000_001d (AMD), which differ in one field.
fn cache(cache: crate::Cache, topology: &Topology, intel: bool) -> [u32; 4] {
    const LINE: u32 = 64;
    const SELF_INITIALISING: u32 = 1 << 8;
    let kind = match cache.kind {
        CacheKind::Data => 1,
        CacheKind::Instructions => 2,
        CacheKind::Unified => 3,
    };
    let bits = if cache.shared { topology.socket_shift() } else { topology.thread_bits() };
    let sharing = (1u32.wrapping_shl(bits) - 1).min(0xfff);
    let cores =
        1u32.wrapping_shl(topology.socket_shift() - topology.thread_bits().min(topology.socket_shift()));
    let cores = if intel { (cores - 1).min(0x3f) << 26 } else { 0 };
    let ways = cache.ways.max(1);
    let sets = (cache.size_kib.saturating_mul(1024) / LINE / ways).max(1);
    let eax = kind | u32::from(cache.level) << 5 | SELF_INITIALISING | sharing << 14 | cores;
    [eax, (ways - 1) << 22 | (LINE - 1), sets - 1, 0]
}

/// Leaf 0xb: threads of a core, logical processors of a socket, the end.
pub(crate) fn levels(table: &mut Vec<Leaf>, function: u32, topology: &Topology, id: u32) {
    let (threads, all) = (topology.threads, topology.in_socket());
    table.push(Leaf::indexed(function, 0, [topology.thread_bits(), threads, 1 << 8, id]));
    table.push(Leaf::indexed(function, 1, [topology.socket_shift(), all, 2 << 8 | 1, id]));
    table.push(Leaf::indexed(function, 2, [0, 0, 2, id]));
}

/// Leaf 0xd. KVM refuses an XSETBV of what is not in it, and keeps the sizes for the present XCR0 up to date by itself.
fn xsave(table: &mut Vec<Leaf>, model: &Model) {
    let mask = |supervisor| {
        let of = model.xsave.iter().filter(|c| c.supervisor == supervisor);
        of.fold(0u64, |mask, c| mask | 1 << (c.bit & 63))
    };
    let half = |mask: u64, shift: u32| u32::try_from(mask >> shift & 0xffff_ffff).unwrap_or(0);
    let user = mask(false) | 3;
    let ends = model.xsave.iter().filter(|c| !c.supervisor).map(|c| c.offset.saturating_add(c.size));
    let size = ends.max().unwrap_or(0).max(XSAVE_START);
    table.push(Leaf::indexed(0xd, 0, [half(user, 0), XSAVE_START, size, half(user, 32)]));
    let features = model.features.bits(0xd, 1, Register::Eax);
    let supervisor = if model.features.has("xsaves") { mask(true) } else { 0 };
    table.push(Leaf::indexed(0xd, 1, [features, 0, half(supervisor, 0), half(supervisor, 32)]));
    for c in &model.xsave {
        let flags = u32::from(c.supervisor) | u32::from(c.aligned) << 1;
        table.push(Leaf::indexed(0xd, c.bit.into(), [c.size, c.offset, flags, 0]));
    }
}

/// KVM's own leaves, where it has any to show.
fn kvm(table: &mut Vec<Leaf>, features: &FeatureSet) {
    const BASE: u32 = 0x4000_0000;
    let eax = features.bits(BASE + 1, 0, Register::Eax);
    if eax == 0 || !features.has("hypervisor") {
        return;
    }
    let signature = "KVMKVMKVM\0\0\0";
    table.push(Leaf::plain(BASE, [BASE + 1, word(signature, 0), word(signature, 4), word(signature, 8)]));
    table.push(Leaf::plain(BASE + 1, [eax, 0, 0, 0]));
}

fn extended(table: &mut Vec<Leaf>, model: &Model, topology: &Topology, id: u32) {
    let f = |function, register| model.features.bits(function, 0, register);
    let intel = model.vendor == INTEL;
    let mut edx = f(0x8000_0001, Register::Edx);
    let mut ecx = f(0x8000_0001, Register::Ecx);
    if !intel {
        const CMP_LEGACY: u32 = 1 << 1;
        edx |= f(1, Register::Edx) & AMD_REPEATED;
        ecx |= if topology.in_socket() > 1 { CMP_LEGACY } else { 0 };
    }
    let eax = if intel { 0 } else { signature(model) };
    table.push(Leaf::plain(0x8000_0001, [eax, 0, ecx, edx]));
    for (n, function) in (0x8000_0002..=0x8000_0004).enumerate() {
        let at = 16 * n;
        let words = [0, 4, 8, 12].map(|offset| word(&model.brand, at + offset));
        table.push(Leaf::plain(function, words));
    }
    legacy_caches(table, model, intel);
    table.push(Leaf::plain(0x8000_0007, [0, 0, 0, f(0x8000_0007, Register::Edx)]));
    let linear = if model.features.has("la57") { 57 } else { 48 };
    let (all, bits) = (topology.in_socket().max(1) - 1, topology.socket_shift());
    let cores = if intel { 0 } else { all.min(0xff) | bits << 12 };
    let widths = u32::from(model.address_width) | linear << 8;
    table.push(Leaf::plain(0x8000_0008, [widths, f(0x8000_0008, Register::Ebx), cores, 0]));
    let mut highest = 0x8000_0008;
    if model.features.has("topoext") {
        table.extend(
            (0..).zip(&model.caches).map(|(n, c)| Leaf::indexed(0x8000_001d, n, cache(*c, topology, false))),
        );
        table.push(Leaf::indexed(0x8000_001d, count(&model.caches), [0; 4]));
        let core = id >> topology.thread_bits() & 0xff;
        let socket = id >> topology.socket_shift();
        table.push(Leaf::plain(
            0x8000_001e,
            [id, core | (topology.threads.max(1) - 1) << 8, socket & 0xff, 0],
        ));
        highest = 0x8000_001e;
    }
    if f(0x8000_0021, Register::Eax) != 0 {
        table.push(Leaf::plain(0x8000_0021, [f(0x8000_0021, Register::Eax), 0, 0, 0]));
        highest = 0x8000_0021;
    }
    let vendor = if intel { [highest, 0, 0, 0] } else { named(highest, &model.vendor) };
    table.push(Leaf::plain(0x8000_0000, vendor));
}

/// Leaves 0x8000_0005 and 0x8000_0006: AMD's older way to tell of caches (APM volume 3, E.4.4), which Intel has for level 2 only.
fn legacy_caches(table: &mut Vec<Leaf>, model: &Model, intel: bool) {
    const ONE_LINE_OF_64: u32 = 1 << 8 | 64;
    /// 64 entries, fully associative, for each page size.
    const TLB_1: u32 = 0xff40_ff40;
    const TLB_2: u32 = 0x4800_2200;
    let find = |level, kind| model.caches.iter().find(|c| c.level == level && c.kind == kind);
    let first = |kind| find(1, kind).map_or(0, |c| c.size_kib << 24 | (c.ways & 0xff) << 16 | ONE_LINE_OF_64);
    let ways = |ways: u32| match ways {
        0..=1 => 1,
        2..=3 => 2,
        4..=7 => 4,
        8..=15 => 6,
        16..=31 => 8,
        32..=47 => 10,
        _ => 15u32,
    };
    let second =
        find(2, CacheKind::Unified).map_or(0, |c| c.size_kib << 16 | ways(c.ways) << 12 | ONE_LINE_OF_64);
    let third = find(3, CacheKind::Unified)
        .map_or(0, |c| (c.size_kib / 512) << 18 | ways(c.ways) << 12 | ONE_LINE_OF_64);
    if intel {
        table.push(Leaf::plain(0x8000_0006, [0, 0, second, 0]));
    } else {
        let [data, instructions] = [first(CacheKind::Data), first(CacheKind::Instructions)];
        table.push(Leaf::plain(0x8000_0005, [TLB_1, TLB_1, data, instructions]));
        table.push(Leaf::plain(0x8000_0006, [TLB_2, TLB_2, second, third]));
    }
}
