//! Processors: what a VM gets, what a host can show, the baseline, and a VM's share of the host.

use keelson_api::{Host, Vm};
use keelson_vmm_control::CpuIdentity;
use serde_json::{Value, json};

use crate::host::{Whole, spec};

fn with(name: &str, cpu: Value) -> Value {
    let mut spec = spec(name);
    spec["cpu"] = cpu;
    spec
}

#[test]
fn a_new_vm_has_the_best_definition_of_its_host_for_good() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let shown: Host = host.get("/host").read();
    let identity = shown.cpu_identity.unwrap();
    assert!(identity.vendor.len() == 12 && identity.features.contains(&"lm".to_owned()));
    let best = identity.best_definition.clone().unwrap();
    assert!(identity.definitions.contains(&best) && identity.definitions.contains(&"x86-64-v1".to_owned()));
    assert_eq!(shown.cpu_baseline, None);

    let vm = host.create(&spec("plain"));
    assert_eq!(vm.cpu.definition.as_ref(), Some(&best));
    let document = std::fs::read_to_string(host.datastore().join("plain/vm.toml")).unwrap();
    assert!(document.contains(&format!("[cpu]\ndefinition = \"{best}\"")), "{document}");
    host.succeed(&host.power(vm.id, "on"));
    let monitor = host.init.monitor(vm.id);
    let CpuIdentity::Model(model) = &monitor.config.cpu.identity else { panic!("{:?}", monitor.config.cpu) };
    assert_eq!((&model.definition, &model.vendor), (&best, &identity.vendor));
    let told = format!("processors of {}: weight Some(100), limit None", vm.id);
    assert!(host.init.told().contains(&told), "{:?}", host.init.told());
    host.succeed(&host.power(vm.id, "off"));

    // A VM of before has no definition, and goes on with the host's own processor.
    let file = host.datastore().join("plain/vm.toml");
    let before: String = document.split("[cpu]").next().unwrap().to_owned();
    let mut host = host;
    host.host.kill_hostd();
    std::fs::write(&file, before).unwrap();
    host.host.start_hostd();
    assert_eq!(host.vm(vm.id).cpu.definition, None);
    host.succeed(&host.power(vm.id, "on"));
    let own = &host.init.monitor(vm.id).config.cpu.identity;
    assert!(matches!(own, CpuIdentity::Host { masks } if masks.is_empty()), "{own:?}");
    host.succeed(&host.power(vm.id, "off"));
    let changed: Vm = host.send("PATCH", &format!("/vms/{}", vm.id), &json!({ "vcpus": 1 })).read();
    assert_eq!(changed.cpu.definition.as_deref(), Some("host"), "it does not become another by itself");
}

#[test]
fn the_baseline_caps_new_vms_and_only_those() {
    let Some(mut host) = Whole::start_with_kvm() else { return };
    let own = host.create(&with("own", json!({ "definition": "host" })));
    let refused = |body: Value| host.send("PATCH", "/host", &body);
    for (name, status, said) in [("zen2", 400, "there are: host, x86-64-v1"), ("host", 400, "caps nothing")] {
        let answer = refused(json!({ "cpu_baseline": name }));
        assert_eq!((answer.status, answer.fault().1.as_str()), (status, "cpu_baseline"));
        assert!(String::from_utf8_lossy(&answer.body).contains(said));
    }
    let vendor = host.get("/host").read::<Host>().cpu_identity.unwrap().vendor;
    let foreign = if vendor == "GenuineIntel" { "amd-zen1" } else { "intel-haswell" };
    let answer = refused(json!({ "cpu_baseline": foreign }));
    assert_eq!((answer.status, answer.fault().1.as_str()), (422, "cpu_baseline"));
    assert!(String::from_utf8_lossy(&answer.body).contains("it lacks a processor of"));

    let set: Host = host.send("PATCH", "/host", &json!({ "cpu_baseline": "x86-64-v1" })).read();
    assert_eq!(set.cpu_baseline.as_deref(), Some("x86-64-v1"));
    host.host.kill_hostd();
    host.host.start_hostd();
    assert_eq!(host.create(&spec("capped")).cpu.definition.as_deref(), Some("x86-64-v1"));
    let answer = host.send("POST", "/vms", &with("beyond", json!({ "definition": "host" })));
    assert_eq!((answer.status, answer.fault().1.as_str()), (400, "cpu.definition"));
    assert!(String::from_utf8_lossy(&answer.body).contains("the host's baseline is x86-64-v1"));
    // The one that was there before runs, and is changed in all else.
    let changed: Vm =
        host.send("PATCH", &format!("/vms/{}", own.id), &json!({ "cpu": { "shares": 2000 } })).read();
    assert_eq!((changed.cpu.definition.as_deref(), changed.cpu.shares), (Some("host"), Some(2000)));
    host.succeed(&host.power(own.id, "on"));
    host.succeed(&host.power(own.id, "off"));
    let none: Host = host.send("PATCH", "/host", &json!({ "cpu_baseline": "" })).read();
    assert_eq!(none.cpu_baseline, None);
    host.create(&with("beyond", json!({ "definition": "host" })));
}

#[test]
fn what_is_wrong_with_a_processor_is_told_by_field_and_leaves_nothing() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let before = host.everything();
    let vendor = host.get("/host").read::<Host>().cpu_identity.unwrap().vendor;
    let foreign = if vendor == "GenuineIntel" { "amd-zen1" } else { "intel-haswell" };
    for (cpu, status, field) in [
        (json!({ "definition": "zen2" }), 400, "cpu.definition"),
        (json!({ "definition": foreign }), 422, "cpu.definition"),
        (json!({ "masks": ["avx2", "avx-3"] }), 400, "cpu.masks[1]"),
        (json!({ "masks": ["lm"] }), 400, "cpu.masks[0]"),
        (json!({ "cores_per_socket": 2 }), 400, "cpu.cores_per_socket"),
        (json!({ "affinity": ["0", "0"] }), 400, "cpu.affinity"),
        (json!({ "affinity": ["1000"] }), 400, "cpu.affinity[0]"),
        (json!({ "shares": 1 }), 400, "cpu.shares"),
        (json!({ "limit_percent": 5 }), 400, "cpu.limit_percent"),
        (json!({ "reservation_percent": 101 }), 400, "cpu.reservation_percent"),
    ] {
        let answer = host.send("POST", "/vms", &with("new", cpu.clone()));
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!((answer.status, answer.fault().1.as_str()), (status, field), "{cpu}: {said}");
        assert!(said.contains("remedy"), "{said}");
        assert_eq!(host.everything(), before, "{cpu} left something");
    }
}

#[test]
fn a_vms_share_of_the_host_reaches_its_monitor_and_its_group() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let threads = host.get("/host").read::<Host>().cpu.threads;
    let all = threads * 100;
    let mut first = with(
        "first",
        json!({ "affinity": ["0"], "shares": 300, "limit_percent": all, "reservation_percent": all, "masks": ["x2apic"] }),
    );
    first["vcpus"] = json!(threads);
    let first = host.create(&first);
    host.succeed(&host.power(first.id, "on"));
    let told = format!("processors of {}: weight Some({all}), limit Some({all})", first.id);
    assert!(host.init.told().contains(&told), "{:?}", host.init.told());
    let cpu = &host.init.monitor(first.id).config.cpu;
    assert_eq!(cpu.affinity, [[0]]);
    let CpuIdentity::Model(model) = &cpu.identity else { panic!("{cpu:?}") };
    assert!(!model.features.has("x2apic"));

    let second = host.create(&with("second", json!({ "reservation_percent": 1 })));
    let refused = host.wait(&host.power(second.id, "on")).error.unwrap();
    assert_eq!(
        (format!("{:?}", refused.fault), refused.field.as_deref()),
        ("InsufficientResourcesFault".into(), Some("cpu.reservation_percent"))
    );
    host.succeed(&host.power(first.id, "off"));
    host.succeed(&host.power(second.id, "on"));
    host.succeed(&host.power(second.id, "off"));
}
