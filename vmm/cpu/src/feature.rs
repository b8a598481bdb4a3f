//! The features of x86 processors by name: where CPUID or an MSR shows each, and which others it needs.
//!
//! Places are those of the Intel SDM (volume 2, CPUID; volume 4, IA32_ARCH_CAPABILITIES), the AMD APM (volume 3, appendix E) and the
//! kernel's Documentation/virt/kvm/x86/cpuid.rst. Names are those under which a Linux guest lists them, in lower case; a few that it
//! does not list, or lists twice, are spelt out.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::leaf::{self, Leaf, Register};

/// Where a feature is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A bit of a CPUID answer: EAX and ECX on entry, the register.
    Cpuid(u32, u32, Register),
    /// A bit of IA32_ARCH_CAPABILITIES.
    ArchCapabilities,
}

use Kind::{ArchCapabilities, Cpuid};
use Register::{Eax, Ebx, Ecx, Edx};

const L1C: Kind = Cpuid(1, 0, Ecx);
const L1D: Kind = Cpuid(1, 0, Edx);
const L7B: Kind = Cpuid(7, 0, Ebx);
const L7C: Kind = Cpuid(7, 0, Ecx);
const L7D: Kind = Cpuid(7, 0, Edx);
const L71A: Kind = Cpuid(7, 1, Eax);
const L71D: Kind = Cpuid(7, 1, Edx);
const L72D: Kind = Cpuid(7, 2, Edx);
const LD1A: Kind = Cpuid(0xd, 1, Eax);
const X1C: Kind = Cpuid(0x8000_0001, 0, Ecx);
const X1D: Kind = Cpuid(0x8000_0001, 0, Edx);
const X8B: Kind = Cpuid(0x8000_0008, 0, Ebx);
const X21A: Kind = Cpuid(0x8000_0021, 0, Eax);
const KVM: Kind = Cpuid(0x4000_0001, 0, Eax);

/// The table. A feature's place in it is its number within this process; it is never stored.
#[rustfmt::skip]
const TABLE: &[(&str, Kind, u8)] = &[
    ("fpu", L1D, 0), ("vme", L1D, 1), ("de", L1D, 2), ("pse", L1D, 3), ("tsc", L1D, 4), ("msr", L1D, 5), ("pae", L1D, 6),
    ("mce", L1D, 7), ("cx8", L1D, 8), ("apic", L1D, 9), ("sep", L1D, 11), ("mtrr", L1D, 12), ("pge", L1D, 13), ("mca", L1D, 14),
    ("cmov", L1D, 15), ("pat", L1D, 16), ("pse36", L1D, 17), ("clflush", L1D, 19), ("mmx", L1D, 23), ("fxsr", L1D, 24),
    ("sse", L1D, 25), ("sse2", L1D, 26), ("ss", L1D, 27),
    ("sse3", L1C, 0), ("pclmulqdq", L1C, 1), ("monitor", L1C, 3), ("vmx", L1C, 5), ("ssse3", L1C, 9), ("fma", L1C, 12),
    ("cx16", L1C, 13), ("pdcm", L1C, 15), ("pcid", L1C, 17), ("sse4_1", L1C, 19), ("sse4_2", L1C, 20), ("x2apic", L1C, 21),
    ("movbe", L1C, 22), ("popcnt", L1C, 23), ("tsc_deadline_timer", L1C, 24), ("aes", L1C, 25), ("xsave", L1C, 26),
    ("avx", L1C, 28), ("f16c", L1C, 29), ("rdrand", L1C, 30), ("hypervisor", L1C, 31),
    ("arat", Cpuid(6, 0, Eax), 2),
    ("fsgsbase", L7B, 0), ("tsc_adjust", L7B, 1), ("bmi1", L7B, 3), ("hle", L7B, 4), ("avx2", L7B, 5), ("smep", L7B, 7),
    ("bmi2", L7B, 8), ("erms", L7B, 9), ("invpcid", L7B, 10), ("rtm", L7B, 11), ("mpx", L7B, 14), ("avx512f", L7B, 16),
    ("avx512dq", L7B, 17), ("rdseed", L7B, 18), ("adx", L7B, 19), ("smap", L7B, 20), ("avx512ifma", L7B, 21),
    ("clflushopt", L7B, 23), ("clwb", L7B, 24), ("avx512cd", L7B, 28), ("sha_ni", L7B, 29), ("avx512bw", L7B, 30),
    ("avx512vl", L7B, 31),
    ("avx512vbmi", L7C, 1), ("umip", L7C, 2), ("pku", L7C, 3), ("waitpkg", L7C, 5), ("avx512_vbmi2", L7C, 6), ("shstk", L7C, 7),
    ("gfni", L7C, 8), ("vaes", L7C, 9), ("vpclmulqdq", L7C, 10), ("avx512_vnni", L7C, 11), ("avx512_bitalg", L7C, 12),
    ("avx512_vpopcntdq", L7C, 14), ("la57", L7C, 16), ("rdpid", L7C, 22), ("bus_lock_detect", L7C, 24), ("cldemote", L7C, 25),
    ("movdiri", L7C, 27), ("movdir64b", L7C, 28),
    ("fsrm", L7D, 4), ("avx512_vp2intersect", L7D, 8), ("md_clear", L7D, 10), ("serialize", L7D, 14), ("tsxldtrk", L7D, 16),
    ("ibt", L7D, 20), ("amx_bf16", L7D, 22), ("avx512_fp16", L7D, 23), ("amx_tile", L7D, 24), ("amx_int8", L7D, 25),
    ("spec_ctrl", L7D, 26), ("stibp", L7D, 27), ("flush_l1d", L7D, 28), ("arch_capabilities", L7D, 29), ("ssbd", L7D, 31),
    ("sha512", L71A, 0), ("sm3", L71A, 1), ("sm4", L71A, 2), ("avx_vnni", L71A, 4), ("avx512_bf16", L71A, 5),
    ("cmpccxadd", L71A, 7), ("fzrm", L71A, 10), ("fsrs", L71A, 11), ("fsrc", L71A, 12), ("amx_fp16", L71A, 21),
    ("avx_ifma", L71A, 23), ("avx_vnni_int8", L71D, 4), ("avx_ne_convert", L71D, 5), ("amx_complex", L71D, 8),
    ("avx_vnni_int16", L71D, 10), ("prefetchiti", L71D, 14),
    ("psfd", L72D, 0), ("ipred_ctrl", L72D, 1), ("rrsba_ctrl", L72D, 2), ("ddpd_u", L72D, 3), ("bhi_ctrl", L72D, 4),
    ("mcdt_no", L72D, 5),
    ("xsaveopt", LD1A, 0), ("xsavec", LD1A, 1), ("xgetbv1", LD1A, 2), ("xsaves", LD1A, 3), ("xfd", LD1A, 4),
    ("lahf_lm", X1C, 0), ("svm", X1C, 2), ("cr8_legacy", X1C, 4), ("abm", X1C, 5), ("sse4a", X1C, 6), ("misalignsse", X1C, 7),
    ("3dnowprefetch", X1C, 8), ("osvw", X1C, 9), ("xop", X1C, 11), ("fma4", X1C, 16), ("tbm", X1C, 21), ("topoext", X1C, 22),
    ("perfctr_core", X1C, 23),
    ("syscall", X1D, 11), ("nx", X1D, 20), ("mmxext", X1D, 22), ("fxsr_opt", X1D, 25), ("pdpe1gb", X1D, 26), ("rdtscp", X1D, 27),
    ("lm", X1D, 29),
    ("invariant_tsc", Cpuid(0x8000_0007, 0, Edx), 8),
    ("clzero", X8B, 0), ("xsaveerptr", X8B, 2), ("wbnoinvd", X8B, 9), ("amd_ibpb", X8B, 12), ("amd_ibrs", X8B, 14),
    ("amd_stibp", X8B, 15), ("amd_stibp_always_on", X8B, 17), ("amd_ssbd", X8B, 24), ("virt_ssbd", X8B, 25), ("amd_psfd", X8B, 28),
    ("no_nested_data_bp", X21A, 0), ("lfence_serializing", X21A, 2), ("null_sel_clears_base", X21A, 6), ("auto_ibrs", X21A, 8),
    ("kvm_clock", KVM, 0), ("kvm_nop_io_delay", KVM, 1), ("kvm_clock2", KVM, 3), ("kvm_async_pf", KVM, 4),
    ("kvm_steal_time", KVM, 5), ("kvm_pv_eoi", KVM, 6), ("kvm_pv_unhalt", KVM, 7), ("kvm_pv_tlb_flush", KVM, 9),
    ("kvm_async_pf_vmexit", KVM, 10), ("kvm_pv_send_ipi", KVM, 11), ("kvm_poll_control", KVM, 12), ("kvm_pv_sched_yield", KVM, 13),
    ("kvm_async_pf_int", KVM, 14), ("kvm_msi_ext_dest_id", KVM, 15), ("kvm_map_gpa_range", KVM, 16),
    ("kvm_migration_control", KVM, 17), ("kvm_clock_stable", KVM, 24),
    ("rdcl_no", ArchCapabilities, 0), ("ibrs_all", ArchCapabilities, 1), ("rsba", ArchCapabilities, 2),
    ("skip_l1dfl_vmentry", ArchCapabilities, 3), ("ssb_no", ArchCapabilities, 4), ("mds_no", ArchCapabilities, 5),
    ("if_pschange_mc_no", ArchCapabilities, 6), ("tsx_ctrl", ArchCapabilities, 7), ("taa_no", ArchCapabilities, 8),
    ("sbdr_ssdp_no", ArchCapabilities, 13), ("fbsdp_no", ArchCapabilities, 14), ("psdp_no", ArchCapabilities, 15),
    ("fb_clear", ArchCapabilities, 17), ("rrsba", ArchCapabilities, 19), ("bhi_no", ArchCapabilities, 20),
    ("pbrsb_no", ArchCapabilities, 24), ("gds_no", ArchCapabilities, 26), ("rfds_no", ArchCapabilities, 27),
];

/// What falls with what: each of the first words needs the second. Bits of IA32_ARCH_CAPABILITIES all need `arch_capabilities`.
#[rustfmt::skip]
const NEEDS: &[(&[&str], &str)] = &[
    (&["sse3", "aes", "pclmulqdq", "sha_ni", "gfni", "sse4a", "misalignsse"], "sse2"),
    (&["ssse3"], "sse3"), (&["sse4_1"], "ssse3"), (&["sse4_2"], "sse4_1"),
    (&["avx", "xsaveopt", "xsavec", "xgetbv1", "xsaves", "xsaveerptr", "xfd", "pku", "mpx", "amx_tile"], "xsave"),
    (&["xsaves"], "xsavec"),
    (&["avx2", "fma", "f16c", "vaes", "vpclmulqdq", "xop", "fma4"], "avx"),
    (&["vaes"], "aes"), (&["vpclmulqdq"], "pclmulqdq"),
    (&["avx512f", "avx_vnni", "avx_ifma", "avx_vnni_int8", "avx_vnni_int16", "avx_ne_convert", "sha512", "sm3", "sm4"], "avx2"),
    (&["avx512dq", "avx512ifma", "avx512cd", "avx512bw", "avx512vl", "avx512_vpopcntdq", "avx512_vnni", "avx512_vp2intersect"], "avx512f"),
    (&["avx512vbmi", "avx512_vbmi2", "avx512_bitalg", "avx512_bf16", "avx512_fp16"], "avx512bw"),
    (&["amx_bf16", "amx_int8", "amx_fp16", "amx_complex"], "amx_tile"), (&["amx_tile"], "xfd"),
    (&["invpcid"], "pcid"),
    (&["stibp", "ssbd"], "spec_ctrl"),
    (&["psfd", "ipred_ctrl", "rrsba_ctrl", "bhi_ctrl"], "spec_ctrl"),
    (&["shstk", "ibt"], "xsaves"),
    (&["kvm_async_pf_vmexit", "kvm_async_pf_int"], "kvm_async_pf"),
    (&["kvm_clock_stable"], "kvm_clock2"),
];

/// No 64-bit guest starts without these, so they cannot be masked (x86-64 psABI, the baseline; and what KVM and the boot protocol use).
#[rustfmt::skip]
const FIXED: &[&str] = &["fpu", "tsc", "msr", "pae", "cx8", "apic", "pge", "cmov", "pat", "mmx", "fxsr", "sse", "sse2", "syscall", "nx", "lm"];

/// A feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Feature(u16);

/// No feature has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no processor feature that is known here{hint}", hint = near(.0))]
pub struct UnknownFeature(pub String);

fn near(name: &str) -> String {
    let bare = |text: &str| {
        let plain: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
        plain.to_ascii_lowercase()
    };
    let wanted = bare(name);
    let same = TABLE.iter().find(|(known, ..)| !wanted.is_empty() && bare(known) == wanted);
    same.map_or_else(String::new, |(known, ..)| format!("; is `{known}` meant?"))
}

impl Feature {
    /// The feature of this name.
    pub fn named(name: &str) -> Result<Self, UnknownFeature> {
        let at = TABLE.iter().position(|(known, ..)| *known == name);
        at.and_then(|n| u16::try_from(n).ok()).map(Self).ok_or_else(|| UnknownFeature(name.to_owned()))
    }

    /// All features, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..).take(TABLE.len()).map(Self)
    }

    fn row(self) -> (&'static str, Kind, u8) {
        // Every number was made from the table.
        TABLE.get(usize::from(self.0)).copied().unwrap_or(("", ArchCapabilities, 63))
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Where it is shown.
    pub fn kind(self) -> Kind {
        self.row().1
    }

    /// Which bit it is there.
    pub fn bit(self) -> u8 {
        self.row().2
    }

    fn needs(self) -> impl Iterator<Item = &'static str> {
        let own = self.name();
        let listed = NEEDS.iter().filter(move |(who, _)| who.contains(&own)).map(|(_, what)| *what);
        listed.chain((self.kind() == ArchCapabilities).then_some("arch_capabilities"))
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Features of a processor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeatureSet(BTreeSet<Feature>);

impl FeatureSet {
    /// What a CPUID table and IA32_ARCH_CAPABILITIES show.
    pub fn of(table: &[Leaf], arch_capabilities: u64) -> Self {
        let shown = |feature: &Feature| match feature.kind() {
            Cpuid(function, index, register) => {
                leaf::of(table, function, index).get(register) >> feature.bit() & 1 == 1
            }
            ArchCapabilities => arch_capabilities >> feature.bit() & 1 == 1,
        };
        Self(Feature::all().filter(shown).collect())
    }

    /// Those that are named.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownFeature> {
        names.into_iter().map(Feature::named).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a feature of this name is in it.
    pub fn has(&self, name: &str) -> bool {
        Feature::named(name).is_ok_and(|f| self.0.contains(&f))
    }

    /// Its features, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = Feature> {
        self.0.iter().copied()
    }

    /// Adds one.
    pub fn insert(&mut self, feature: Feature) {
        self.0.insert(feature);
    }

    /// What is in this set and not in the other.
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }

    /// What is in either.
    pub fn with(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).copied().collect())
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// This set less `masked`, and less whatever needs what is then missing.
    pub fn masked(&self, masked: &Self) -> Self {
        let mut left = self.without(masked);
        loop {
            let fallen: Vec<Feature> =
                left.iter().filter(|f| f.needs().any(|n| self.has(n) && !left.has(n))).collect();
            if fallen.is_empty() {
                return left;
            }
            for feature in fallen {
                left.0.remove(&feature);
            }
        }
    }

    /// The bits that these features set in a register of a leaf.
    pub(crate) fn bits(&self, function: u32, index: u32, register: Register) -> u32 {
        let here = self.iter().filter(|f| f.kind() == Cpuid(function, index, register));
        here.fold(0, |bits, f| bits | 1 << f.bit())
    }

    /// The bits that these features set in IA32_ARCH_CAPABILITIES.
    pub fn arch_capabilities(&self) -> u64 {
        let here = self.iter().filter(|f| f.kind() == ArchCapabilities);
        here.fold(0, |bits, f| bits | 1 << f.bit())
    }

    /// The names, with commas between.
    pub fn names(&self) -> String {
        self.iter().map(Feature::name).collect::<Vec<_>>().join(", ")
    }
}

impl FromIterator<Feature> for FeatureSet {
    fn from_iter<T: IntoIterator<Item = Feature>>(features: T) -> Self {
        Self(features.into_iter().collect())
    }
}

impl Serialize for FeatureSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Feature::name))
    }
}

impl<'de> Deserialize<'de> for FeatureSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        Self::named(names.iter().map(String::as_str)).map_err(serde::de::Error::custom)
    }
}

/// Why a feature cannot be masked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// There is none of that name.
    #[error(transparent)]
    Unknown(#[from] UnknownFeature),
    /// Every guest needs it.
    #[error("`{0}` cannot be masked: no 64-bit guest starts without it")]
    Fixed(&'static str),
}

/// The features that these names mask.
pub fn check_masks<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<FeatureSet, MaskError> {
    let masks = FeatureSet::named(names)?;
    let fixed = masks.iter().map(Feature::name).find(|name| FIXED.contains(name));
    fixed.map_or(Ok(masks), |name| Err(MaskError::Fixed(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_name_and_every_place_is_there_once_and_needs_are_features() {
        let mut names = BTreeSet::new();
        let mut places = Vec::new();
        for (name, kind, bit) in TABLE {
            assert!(names.insert(*name), "{name} is there twice");
            assert!(!places.contains(&(*kind, *bit)), "the place of {name} is taken");
            places.push((*kind, *bit));
        }
        for name in NEEDS.iter().flat_map(|(who, what)| who.iter().chain([what])).chain(FIXED) {
            assert!(names.contains(name), "{name} is no feature");
        }
    }

    #[test]
    fn what_needs_a_masked_feature_goes_with_it() {
        let all: FeatureSet = Feature::all().collect();
        let left = all.masked(&FeatureSet::named(["avx"]).unwrap());
        for gone in ["avx", "avx2", "fma", "f16c", "vaes", "avx512f", "avx512_fp16", "avx_vnni"] {
            assert!(!left.has(gone), "{gone} is left");
        }
        assert!(left.has("xsave") && left.has("sse4_2") && left.has("aes") && left.has("pku"));
        let left = all.masked(&FeatureSet::named(["xsave", "arch_capabilities"]).unwrap());
        assert!(!left.has("pku") && !left.has("amx_int8") && left.arch_capabilities() == 0);
    }

    #[test]
    fn masks_are_checked_by_name() {
        assert_eq!(check_masks(["avx2"]).unwrap().names(), "avx2");
        assert!(check_masks(["AVX-512F"]).unwrap_err().to_string().contains("is `avx512f` meant?"));
        assert!(check_masks(["lm"]).unwrap_err().to_string().contains("no 64-bit guest"));
        assert!(!check_masks([""]).unwrap_err().to_string().contains("meant"));
    }

    fn any_set() -> impl Strategy<Value = FeatureSet> {
        proptest::collection::vec(any::<bool>(), TABLE.len())
            .prop_map(|bits| Feature::all().zip(bits).filter(|(_, set)| *set).map(|(f, _)| f).collect())
    }

    proptest! {
        #[test]
        fn masking_only_takes_away_and_twice_is_once(all in any_set(), masks in any_set()) {
            let left = all.masked(&masks);
            prop_assert!(left.without(&all).is_empty());
            prop_assert!(left.iter().all(|f| !masks.0.contains(&f)));
            prop_assert_eq!(left.masked(&masks), left);
        }

        #[test]
        fn no_name_makes_it_panic(name in "\\PC{0,40}") {
            if let Err(e) = check_masks([name.as_str()]) {
                prop_assert!(!e.to_string().is_empty());
            }
        }
    }
}
