//! The processor that a guest sees, on this machine's KVM.
//!
//! A KVM without hardware behind it cannot keep a guest from features that it cannot trap, and so shows them to the guest whatever it
//! was told. The tests find out which those are, hold all others to what was asked, and say so.

#![allow(clippy::unwrap_used)] // also in what helps tests: one that cannot go on fails

mod support;

use std::collections::BTreeMap;

use keelson_vmm_control::{ExitCode, cpu_list};
use keelson_vmm_cpu::{Feature, FeatureSet, HostCpu, Kind, Leaf, check_masks, find};
use support::{Vm, kvm, monitor};

const OFF: i32 = ExitCode::GuestOff as i32;
const BAD: i32 = ExitCode::BadConfig as i32;

/// What CPUID says to a guest in ring 0, and what its tries to set XCR0 brought: 0, or the exception.
fn trials(cmdline: &str, words: &[&str]) -> (Vec<Leaf>, BTreeMap<u32, u32>) {
    let mut vm = Vm::run(cmdline, words);
    vm.expect("told\n");
    assert_eq!(vm.exit_code(), OFF, "{words:?}: {}", vm.logged());
    let printed = vm.printed();
    let numbers = |name: &str| -> Vec<Vec<u32>> {
        let lines = printed.lines().filter_map(|l| l.strip_prefix(name));
        lines.map(|l| l.split_whitespace().map(|word| word.parse().unwrap()).collect()).collect()
    };
    let leaf = |n: &Vec<u32>| Leaf::indexed(n[0], n[1], [n[2], n[3], n[4], n[5]]);
    let leaves = numbers("cpuid ").iter().map(leaf).collect();
    (leaves, numbers("xsetbv ").iter().map(|n| (n[0], n[1])).collect())
}

fn seen(words: &[&str]) -> Vec<Leaf> {
    trials("cpuid", words).0
}

/// The features that a guest sees though all are masked. With hardware behind KVM these are only those that cannot be masked.
fn unhideable() -> FeatureSet {
    let maskable: Vec<&str> =
        Feature::all().map(Feature::name).filter(|name| check_masks([*name]).is_ok()).collect();
    let left = HostCpu::of(&seen(&["--cpu-mask", &maskable.join(",")]), 0, false).features;
    let left: FeatureSet = left.iter().filter(|f| maskable.contains(&f.name())).collect();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if cpuinfo.split_whitespace().any(|word| word == "vmx" || word == "svm") {
        assert!(left.is_empty(), "KVM with hardware behind it shows what is masked: {}", left.names());
    } else {
        eprintln!("this machine's KVM has no hardware behind it and cannot hide: {}", left.names());
    }
    left
}

fn get(table: &[Leaf], function: u32, index: u32) -> Leaf {
    *table.iter().find(|l| l.function == function && l.index == index).unwrap()
}

#[test]
fn a_guest_sees_its_definition_exactly() {
    if !kvm() {
        return;
    }
    let table = seen(&["--cpu", "x86-64-v1", "--cpus", "6", "--cpu-topology", "1:3:2"]);
    let first = get(&table, 0, 0);
    let vendor = [first.ebx, first.edx, first.ecx].map(u32::to_le_bytes).concat();
    let vendor = String::from_utf8(vendor).unwrap();
    let model = find("x86-64-v1").unwrap().resolve(&vendor, &FeatureSet::default());
    let cpu = HostCpu::of(&table, 0, false);
    assert_eq!((cpu.family, cpu.model, cpu.stepping), (model.family, model.model, model.stepping));
    assert_eq!(cpu.address_width, 39);
    // Those of the leaves that the payload asks for, and that can be hidden.
    let unhideable = unhideable();
    let told = |f: &Feature| matches!(f.kind(), Kind::Cpuid(function, ..) if table.iter().any(|l| l.function == function));
    let hideable =
        |set: &FeatureSet| set.without(&unhideable).iter().filter(told).collect::<FeatureSet>().names();
    assert_eq!(hideable(&cpu.features), hideable(&model.features));
    assert!(
        model.features.iter().filter(told).all(|f| cpu.features.has(f.name())),
        "{}",
        cpu.features.names()
    );
    assert_eq!(get(&table, 0x8000_0002, 0).eax.to_le_bytes(), *b"x86-");
    assert_eq!((get(&table, 0xb, 0).ebx, get(&table, 0xb, 1).ebx, get(&table, 0xb, 1).eax), (2, 6, 3));
    assert_eq!(get(&table, 1, 0).ebx >> 16 & 0xff, 8);
}

#[test]
fn a_masked_feature_is_not_seen_with_a_definition_nor_with_the_hosts_processor() {
    if !kvm() {
        return;
    }
    let features = |words: &[&str]| HostCpu::of(&seen(words), 0, false).features;
    let unhideable = unhideable();
    let masks = ["x2apic", "kvm_pv_eoi", "clflush", "rdrand", "avx2"];
    for cpu in ["host", "x86-64-v1"] {
        let whole = features(&["--cpu", cpu]);
        assert!(whole.has("x2apic") && whole.has("kvm_pv_eoi"), "{}", whole.names());
        let masked = features(&["--cpu", cpu, "--cpu-mask", &masks.join(",")]);
        let left = whole.masked(&check_masks(masks).unwrap());
        assert_eq!(masked.without(&unhideable).names(), left.without(&unhideable).names(), "{cpu}");
        assert!(!masked.has("x2apic") && !masked.has("kvm_pv_eoi"), "{}", masked.names());
    }
}

#[test]
fn an_xsetbv_of_what_is_masked_faults() {
    if !kvm() {
        return;
    }
    let unhideable = unhideable();
    for masks in ["", "avx,pku", "xsave"] {
        let mut words = vec!["--cpu", "host"];
        if !masks.is_empty() {
            words.extend(["--cpu-mask", masks]);
        }
        let (table, tried) = trials("cpuid xsetbv", &words);
        let features = HostCpu::of(&table, 0, false).features;
        // Without XSAVE the instruction itself is invalid (#UD); with it a component that is not offered is a fault (#GP).
        let offered = if features.has("xsave") { get(&table, 0xd, 0).eax } else { 0 };
        let fault = |value: u32| match (features.has("xsave"), value & !offered) {
            (false, _) => 6,
            (true, 0) => 0,
            (true, _) => 13,
        };
        assert_eq!(
            tried,
            [3, 7, 0xe7, 0x207].map(|value| (value, fault(value))).into(),
            "{masks}: {offered:#x}"
        );
        if !masks.is_empty() && !unhideable.has("xsave") {
            let left = if masks == "xsave" { 0 } else { 3 };
            assert_eq!(offered & 0x2e7, left, "less {masks}");
        }
    }
}

#[test]
fn further_processors_have_the_ids_of_their_sockets_and_cores() {
    if !kvm() {
        return;
    }
    for (cpus, topology, ids) in
        [(8, "1:8:1", "1-7"), (12, "2:3:2", "1-5,8-13"), (64, "2:16:2", "1-63"), (64, "4:16:1", "1-63")]
    {
        let count = cpus.to_string();
        let words = ["--cpus", &count, "--cpu-topology", topology];
        let mut vm = Vm::run(&format!("smp={cpus}"), &words);
        vm.expect("counted\n");
        assert_eq!(vm.exit_code(), OFF, "{}", vm.logged());
        let printed = vm.printed();
        assert!(printed.contains(&format!("cpus {cpus}\n")), "{printed}");
        let told: Vec<u32> =
            printed.lines().filter_map(|l| l.strip_prefix("apic ")?.trim().parse().ok()).collect();
        assert_eq!(Ok(told), cpu_list(ids), "{topology}");
    }
}

#[test]
fn vcpus_stay_on_the_host_processors_that_they_are_pinned_to() {
    if !kvm() {
        return;
    }
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = allowed.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap();
    let allowed = cpu_list(allowed.trim()).unwrap();
    let (first, last) = (allowed[0].to_string(), allowed[allowed.len() - 1].to_string());
    let mut vm = Vm::run("echo", &["--cpus", "2", "--cpu-affinity", &first, "--cpu-affinity", &last]);
    vm.expect("ready\n");
    let mut found = BTreeMap::new();
    for thread in std::fs::read_dir(format!("/proc/{}/task", vm.child.id())).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
        found.insert(field("Name:"), field("Cpus_allowed_list:"));
    }
    assert_eq!((&found["vcpu0"], &found["vcpu1"]), (&first, &last), "{found:?}");
    assert_eq!(cpu_list(&found["control"]).unwrap(), allowed, "only vCPUs are pinned");
    vm.type_in("q");
    assert_eq!(vm.exit_code(), OFF);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    if !kvm() {
        return;
    }
    let payload = support::payload().to_str().unwrap();
    for (words, said) in [
        (&["--cpu", "zen9"][..], "there is no CPU definition `zen9`; there are: host, x86-64-v1"),
        (&["--cpu-mask", "avx-9"], "`avx-9` is no processor feature"),
        (&["--cpu-mask", "AVX2"], "is `avx2` meant?"),
        (&["--cpu", "x86-64-v1", "--cpu-mask", "lm"], "`lm` cannot be masked"),
        (&["--cpus", "4", "--cpu-topology", "1:3:1"], "1 sockets of 3 cores of 1 threads are not 4 vCPUs"),
        (&["--cpu-affinity", "1000"], "host processor 1000 cannot be used"),
        (&["--cpu-affinity", "3-1"], "`3-1` counts backwards"),
        (&["--cpu", "x86-64-v1", "--memory", "1000000"], "39 bits of physical address"),
    ] {
        let out = monitor().args(["run", "--kernel", payload]).args(words).output().unwrap();
        let logged = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(BAD), "{words:?}: {logged}");
        assert!(logged.contains(said), "{words:?}: {logged}");
    }
    // No processor is AMD's and Intel's at once, so one of them cannot run here, and what is missing is named.
    let refused = ["amd-zen4", "intel-sapphirerapids"].map(|cpu| {
        let out = monitor().args(["run", "--kernel", payload, "--cpu", cpu]).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    });
    assert!(
        refused.iter().any(|(code, said)| *code == Some(BAD) && said.contains("it lacks a processor of")),
        "{refused:?}"
    );
}
