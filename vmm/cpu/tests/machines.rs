//! Definitions against the tables of several machines, and the tables that guests get.
#![allow(clippy::unwrap_used, clippy::panic)] // a test ends by panicking

use keelson_vmm_cpu::{
    FeatureSet, HostCpu, Leaf, Missing, Model, Platform, Register, Supported, Topology, best_for,
    check_masks, common, definitions, find, list, masks_for, materialise, passthrough,
};
use proptest::prelude::*;

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

fn machine(name: &str) -> Supported {
    let path = format!("{}/testdata/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let mut supported = Supported { table: Vec::new(), arch_capabilities: 0, tsc_deadline: true };
    for line in std::fs::read_to_string(path).unwrap().lines().filter(|l| !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[0] == "msr" {
            supported.arch_capabilities = number(words[2]);
            continue;
        }
        let n = |at: usize| u32::try_from(number(words[at])).unwrap();
        let registers = [n(3), n(4), n(5), n(6)];
        supported.table.push(Leaf { indexed: n(2) == 1, ..Leaf::indexed(n(0), n(1), registers) });
    }
    supported
}

fn host(name: &str) -> HostCpu {
    machine(name).host()
}

fn none() -> FeatureSet {
    FeatureSet::default()
}

fn get(table: &[Leaf], function: u32, index: u32) -> Leaf {
    *table.iter().find(|l| l.function == function && (l.index == index || !l.indexed)).unwrap()
}

fn absent(table: &[Leaf], function: u32, index: u32) -> bool {
    !table.iter().any(|l| l.function == function && l.index == index)
}

#[test]
fn each_machine_has_its_best_definition() {
    for (name, vendor, signature, best) in [
        ("epyc-7003-without-hardware", "AuthenticAMD", (0x19, 1, 1), "x86-64-v1"),
        ("epyc-9004", "AuthenticAMD", (0x19, 0x11, 1), "amd-zen4"),
        ("xeon-e5-2680-v4", "GenuineIntel", (6, 0x4f, 1), "intel-broadwell"),
        ("xeon-6330", "GenuineIntel", (6, 0x6a, 6), "intel-icelake-server"),
        ("xeon-platinum-8480", "GenuineIntel", (6, 0x8f, 8), "intel-sapphirerapids"),
    ] {
        let host = host(name);
        assert_eq!((host.vendor.as_str(), (host.family, host.model, host.stepping)), (vendor, signature));
        let told: Vec<_> = definitions()
            .iter()
            .filter(|d| d.vendor().is_none_or(|v| v == vendor))
            .map(|d| format!("{}: {}", d.name, list(&d.fits(&host, &none()))))
            .collect();
        assert_eq!(best_for(&host).map(|d| d.name.as_str()), Some(best), "{name}: {told:#?}");
    }
}

#[test]
fn what_a_host_lacks_is_named() {
    let (old, amd) = (host("xeon-e5-2680-v4"), host("epyc-9004"));
    let missing = find("intel-skylake-server").unwrap().fits(&old, &none());
    assert!(list(&missing).contains("avx512f") && !list(&missing).contains("avx2,"), "{}", list(&missing));
    let missing = find("intel-broadwell").unwrap().fits(&amd, &none());
    assert!(matches!(missing[0], Missing::Vendor { .. }) && list(&missing).contains("GenuineIntel"));
    let narrow = HostCpu { address_width: 39, ..old };
    let missing = find("intel-haswell").unwrap().fits(&narrow, &none());
    assert_eq!(list(&missing), "46 bits of physical address (it has 39)");
    let mut moved = amd;
    moved.xsave.iter_mut().find(|c| c.bit == 9).unwrap().offset = 2688;
    assert_eq!(
        find("amd-zen3").unwrap().fits(&moved, &none()),
        [Missing::XsaveLayout { bit: 9 }],
        "an AMD processor with Intel's layout"
    );
    assert_eq!(find("amd-zen3").unwrap().fits(&moved, &check_masks(["pku"]).unwrap()), []);
}

#[test]
fn two_hosts_have_what_both_can_run_in_common() {
    let (e5, ice, sapphire, amd) =
        (host("xeon-e5-2680-v4"), host("xeon-6330"), host("xeon-platinum-8480"), host("epyc-9004"));
    assert_eq!(common(&[&ice, &sapphire]).unwrap().name, "intel-icelake-server");
    assert_eq!(common(&[&sapphire, &e5]).unwrap().name, "intel-broadwell");
    // Of different vendors a level alone.
    assert_eq!(common(&[&ice, &amd]).unwrap().name, "x86-64-v4");
    assert_eq!(common(&[&e5, &amd]).unwrap().name, "x86-64-v3");
    let masks = masks_for(find("intel-skylake-server").unwrap(), &[&e5, &ice]).unwrap();
    assert!(masks.has("avx512f") && masks.has("pku") && !masks.has("avx2"));
    assert_eq!(find("intel-skylake-server").unwrap().fits(&e5, &masks), []);
    assert!(masks_for(find("amd-zen1").unwrap(), &[&ice]).is_none(), "no mask changes the vendor");
}

#[test]
fn the_guest_sees_the_definition_and_nothing_of_the_host() {
    let model = find("amd-zen3").unwrap().resolve("AuthenticAMD", &none());
    let topology = Topology { sockets: 2, cores: 3, threads: 2 };
    let seen = materialise(&model, &topology, 7, &Platform { tsc_khz: Some(2_000_000) });
    assert_eq!(HostCpu::of(&seen, 0, false).features, model.features, "every feature, and no other");
    let id = 9; // second socket (8), first core, second thread
    assert_eq!(get(&seen, 0, 0), Leaf::plain(0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]));
    let one = get(&seen, 1, 0);
    assert_eq!((one.eax, one.ebx), (0xa0_0f11, id << 24 | 8 << 16 | 8 << 8));
    assert_eq!(one.edx >> 28 & 1, 1, "several logical processors");
    assert_eq!(get(&seen, 0xb, 0), Leaf::indexed(0xb, 0, [1, 2, 0x100, id]));
    assert_eq!(get(&seen, 0xb, 1), Leaf::indexed(0xb, 1, [3, 6, 0x201, id]));
    let d = get(&seen, 0xd, 0);
    assert_eq!((d.eax, d.ebx, d.ecx, d.edx), (0x207, 576, 2440, 0));
    assert_eq!((get(&seen, 0xd, 9).eax, get(&seen, 0xd, 9).ebx), (8, 2432));
    assert_eq!(get(&seen, 0x8000_0008, 0).eax, 0x3030);
    assert_eq!(get(&seen, 0x8000_0008, 0).ecx, 5 | 3 << 12);
    assert_eq!(
        get(&seen, 0x8000_001d, 2).eax,
        0x143 | 1 << 14,
        "a core's two threads share its second level"
    );
    assert_eq!(get(&seen, 0x8000_001d, 3).eax, 0x163 | 7 << 14);
    assert_eq!(get(&seen, 0x8000_001d, 3).ecx, 32768 - 1);
    let e = get(&seen, 0x8000_001e, 0);
    assert_eq!((e.eax, e.ebx, e.ecx), (id, 4 | 1 << 8, 1));
    let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .flat_map(|f| {
            let leaf = get(&seen, f, 0);
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat()
        })
        .collect();
    assert!(brand.starts_with(b"amd-zen3 (Keelson)\0") && brand.len() == 48);
    assert_eq!(get(&seen, 0x4000_0000, 0).ebx.to_le_bytes(), *b"KVMK");
    assert!(absent(&seen, 4, 0) && absent(&seen, 0x15, 0));
}

#[test]
fn an_intel_guest_sees_intels_leaves() {
    let model = find("intel-icelake-server").unwrap().resolve("GenuineIntel", &none());
    let seen = materialise(&model, &Topology::one_socket(4), 3, &Platform { tsc_khz: Some(2_445_404) });
    assert_eq!(HostCpu::of(&seen, model.features.arch_capabilities(), false).features, model.features);
    assert_eq!(get(&seen, 1, 0).eax, 0x606a6);
    // 48 KiB in 12 ways, of its own; 24 MiB that four share.
    assert_eq!(
        (get(&seen, 4, 0).eax, get(&seen, 4, 0).ebx, get(&seen, 4, 0).ecx),
        (0x0c00_0121, 0x2c0_003f, 63)
    );
    assert_eq!(get(&seen, 4, 3).eax, 0x0c00_c163);
    assert_eq!(get(&seen, 4, 4).eax & 0x1f, 0);
    let tsc = get(&seen, 0x15, 0);
    assert_eq!(u64::from(tsc.ecx) * u64::from(tsc.ebx) / u64::from(tsc.eax), 2_445_404_000);
    assert_eq!((get(&seen, 0, 0).eax, get(&seen, 0xd, 0).ecx, get(&seen, 0xd, 5).ebx), (0x16, 2696, 1088));
    assert!(absent(&seen, 0x8000_001d, 0));
    assert_eq!(model.features.arch_capabilities() & 0x12b, 0x12b);
}

#[test]
fn a_masked_feature_takes_its_xsave_components_along() {
    for (name, masks, gone, xcr0, size) in [
        ("amd-zen4", "avx512f", "avx512_bf16", 0x207, 2440),
        ("amd-zen4", "avx", "avx512f", 0x203, 2440),
        ("intel-skylake-server", "pku", "pku", 0xe7, 2688),
        ("x86-64-v4", "avx2", "avx512vl", 7, 832),
    ] {
        let definition = find(name).unwrap();
        let model =
            definition.resolve(definition.vendor().unwrap_or("AuthenticAMD"), &check_masks([masks]).unwrap());
        let seen = materialise(&model, &Topology::one_socket(1), 0, &Platform::default());
        assert!(!HostCpu::of(&seen, 0, false).features.has(gone), "{name} less {masks}");
        assert_eq!((get(&seen, 0xd, 0).eax, get(&seen, 0xd, 0).ecx), (xcr0, size), "{name} less {masks}");
    }
    let model = find("amd-zen4").unwrap().resolve("AuthenticAMD", &check_masks(["xsave"]).unwrap());
    let seen = materialise(&model, &Topology::one_socket(1), 0, &Platform::default());
    assert!(!seen.iter().any(|l| l.function == 0xd) && model.xsave.is_empty());
}

#[test]
fn a_guest_with_the_hosts_processor_has_the_machines_topology_and_no_masked_feature() {
    let supported = machine("xeon-6330");
    let topology = Topology::one_socket(5);
    let seen = passthrough(&supported, &topology, 3, &none());
    assert_eq!(get(&seen, 1, 0).ebx, 3 << 24 | 8 << 16 | 0x800);
    assert_eq!(get(&seen, 0xb, 1), Leaf::indexed(0xb, 1, [3, 5, 0x201, 3]));
    assert_eq!(get(&seen, 4, 3).eax, 7 << 26 | 7 << 14 | 0x163);
    assert_eq!(get(&seen, 0xd, 0).eax, 0x2e7);
    let seen = passthrough(&supported, &topology, 3, &check_masks(["avx512f", "rdseed"]).unwrap());
    let features = HostCpu::of(&seen, 0, false).features;
    assert!(
        !features.has("avx512f")
            && !features.has("avx512_vnni")
            && !features.has("rdseed")
            && features.has("avx2")
    );
    assert_eq!((get(&seen, 0xd, 0).eax, get(&seen, 0xd, 0).ecx), (0x207, 0xa88));
    assert!(absent(&seen, 0xd, 5) && !absent(&seen, 0xd, 9));
    // One vCPU: no topology of the host shows.
    let alone = passthrough(
        &Supported { tsc_deadline: false, ..machine("epyc-9004") },
        &Topology::one_socket(1),
        0,
        &none(),
    );
    assert_eq!((get(&alone, 1, 0).ebx >> 16, get(&alone, 1, 0).edx >> 28 & 1), (1, 0));
    assert_eq!(get(&alone, 1, 0).ecx >> 24 & 1, 0);
    assert_eq!(get(&alone, 0x8000_0008, 0).ecx, 0);
}

#[test]
fn a_model_travels_as_text() {
    for definition in definitions() {
        let model = definition.resolve("GenuineIntel", &none());
        let text = serde_json::to_string(&model).unwrap();
        assert_eq!(serde_json::from_str::<Model>(&text).unwrap(), model);
    }
    assert!(serde_json::from_str::<Model>("{}").is_err());
}

fn any_leaf() -> impl Strategy<Value = Leaf> {
    let function =
        prop_oneof![0u32..0x20, 0x8000_0000u32..0x8000_0030, 0x4000_0000u32..0x4000_0002, any::<u32>()];
    (function, 0u32..70, any::<bool>(), any::<[u32; 4]>())
        .prop_map(|(function, index, indexed, r)| Leaf { indexed, ..Leaf::indexed(function, index, r) })
}

proptest! {
    #[test]
    fn no_table_makes_it_panic(
        leaves in proptest::collection::vec(any_leaf(), 0..60), msr: u64, deadline: bool,
        vcpus in 1u32..255, masked in proptest::sample::subsequence(vec!["avx", "xsave", "rdrand", "x2apic", "sse3", "pku"], 0..6),
    ) {
        let supported = Supported { table: leaves, arch_capabilities: msr, tsc_deadline: deadline };
        let host = supported.host();
        for definition in definitions() {
            let _ = list(&definition.fits(&host, &none()));
        }
        let _ = (best_for(&host), common(&[&host, &host]), masks_for(&definitions()[3], &[&host]));
        let masks = check_masks(masked).unwrap();
        let seen = passthrough(&supported, &Topology::one_socket(vcpus), vcpus - 1, &masks);
        prop_assert!(seen.len() <= supported.table.len() + 3);
        let features = HostCpu::of(&seen, 0, false).features;
        prop_assert!(masks.iter().all(|f| !features.has(f.name())));
    }

    #[test]
    fn a_guests_table_is_its_model_for_every_mask_and_topology(
        n in 0..definitions().len(), picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        sockets in 1u32..5, cores in 1u32..20, threads in 1u32..3, khz in proptest::option::of(any::<u32>()),
    ) {
        let definition = &definitions()[n];
        let all: Vec<&str> = definition.features.iter().map(|f| f.name()).collect();
        let masks: FeatureSet = picks
            .iter()
            .filter_map(|i| check_masks([*i.get(&all)]).ok())
            .fold(none(), |sum, one| sum.with(&one));
        let vendor = definition.vendor().unwrap_or("AuthenticAMD");
        let model = definition.resolve(vendor, &masks);
        let topology = Topology { sockets, cores, threads };
        let last = sockets * cores * threads - 1;
        let seen = materialise(&model, &topology, last, &Platform { tsc_khz: khz });
        let back = HostCpu::of(&seen, model.features.arch_capabilities(), false);
        // KVM's leaves are gone as a whole with the hypervisor's bit.
        if model.features.has("hypervisor") {
            prop_assert_eq!(&back.features, &model.features);
            prop_assert_eq!(model.fits(&back), []);
        }
        prop_assert_eq!(&back.xsave, &model.xsave);
        prop_assert_eq!((back.family, back.model, back.stepping), (model.family, model.model, model.stepping));
        prop_assert_eq!(back.address_width, model.address_width);
        let xcr0 = seen.iter().find(|l| l.function == 0xd && l.index == 0).map(|l| l.get(Register::Eax));
        prop_assert_eq!(xcr0.is_some(), model.features.has("xsave"));
        prop_assert!(seen.windows(2).all(|w| (w[0].function, w[0].index) < (w[1].function, w[1].index)));
    }
}
