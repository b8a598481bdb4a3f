//! The life of VMs: made, powered on, watched, powered off, deleted; and what a killed host agent leaves intact.

use std::io::{BufReader, Write};

use keelson_api::{Host, Network, PowerState, Task, TaskState, Vm};
use keelson_init_control::{Boot, STEP_MACHINES, Step};
use serde_json::json;

use crate::fake_init::{Break, FakeInit};
use crate::fake_netd::FakeNetd;
use crate::host::{Host as Agent, Whole, boot, spec};
use crate::http;

#[test]
fn a_vm_lives_from_creation_to_deletion() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let before = host.everything();
    let vm = host.create(&json!({
        "name": "web 1", "vcpus": 1, "memory_mib": 64, "kernel": "[datastore1] vmlinuz", "initramfs": "[datastore1] isos/initrd",
        "cmdline": "console=ttyS0", "disks": [{ "size_mib": 8 }], "nics": [{ "port_group": "VM Network" }],
    }));
    assert_eq!((vm.power_state, vm.directory.as_str()), (PowerState::PoweredOff, "[datastore1] web 1"));
    assert_eq!(
        (vm.disks[0].path.as_str(), vm.disks[0].size_bytes),
        ("[datastore1] web 1/disk0.img", 8 << 20)
    );
    assert!(vm.nics[0].mac.starts_with("02:"));

    let task = host.succeed(&host.power(vm.id, "on"));
    assert_eq!(
        (task.name.as_str(), task.target, task.progress),
        ("Power On Virtual Machine", vm.id.to_string(), 100)
    );
    let monitor = host.init.monitor(vm.id);
    assert_eq!(
        monitor.names,
        ["config", "console-log", "disk0", "initramfs", "kernel", "kvm", "memory", "nic0"]
    );
    assert_eq!((monitor.memory_bytes, monitor.config.uuid), (64 << 20, vm.id));
    assert_eq!(monitor.config.nics[0].mac, vm.nics[0].mac);
    assert!(monitor.memory_is_sealed());
    assert_eq!(host.netd.taps(), ["VM Network"]);
    assert_eq!(host.init.holds().0, [format!("vm/{} memory", vm.id)]);
    let on = host.vm(vm.id);
    assert_eq!(
        (on.power_state, on.uptime_s, on.memory_touched_mib),
        (PowerState::PoweredOn, Some(3), Some(7))
    );
    assert_eq!(host.get("/host").read::<Host>().memory.reserved_for_vms_bytes, 64 << 20);

    // What a running VM does not allow.
    for (answer, fault) in [
        (host.power(vm.id, "on"), "InvalidPowerState"),
        (host.power(vm.id, "resume"), "InvalidPowerState"),
        (host.send("PATCH", &format!("/vms/{}", vm.id), &json!({ "vcpus": 1 })), "InvalidPowerState"),
        (http::send(&host.socket(), "DELETE", &format!("/vms/{}", vm.id), b""), "InvalidPowerState"),
        (http::send(&host.socket(), "PUT", "/datastores/datastore1/files/vmlinuz", b"x"), "FileInUse"),
        (http::send(&host.socket(), "DELETE", "/datastores/datastore1/files/isos/initrd", b""), "FileInUse"),
        (
            http::send(&host.socket(), "PUT", "/datastores/datastore1/files/web 1/disk0.img", b"x"),
            "FileInUse",
        ),
        (http::send(&host.socket(), "PUT", "/datastores/datastore1/files/web 1/vm.toml", b"x"), "FileInUse"),
    ] {
        assert_eq!(
            (answer.status, answer.fault().0.as_str()),
            (409, fault),
            "{}",
            String::from_utf8_lossy(&answer.body)
        );
    }

    // Two VMs never open one image.
    let twin = host.create(&json!({ "name": "twin", "memory_mib": 64, "kernel": "[datastore1] vmlinuz", "disks": [{ "path": "[datastore1] web 1/disk0.img" }] }));
    let refused = host.wait(&host.power(twin.id, "on"));
    let problem = refused.error.unwrap();
    assert_eq!(
        (format!("{:?}", problem.fault), problem.field.as_deref()),
        ("FileInUse".into(), Some("disks[0].path"))
    );
    host.succeed(&http::send(&host.socket(), "DELETE", &format!("/vms/{}", twin.id), b""));

    host.succeed(&host.power(vm.id, "pause"));
    assert_eq!(host.vm(vm.id).power_state, PowerState::Paused);
    host.succeed(&host.power(vm.id, "resume"));
    host.succeed(&host.power(vm.id, "reset"));
    assert_eq!(monitor.resets(), 1);

    host.succeed(&host.power(vm.id, "shutdown"));
    let off = host.vm(vm.id);
    assert_eq!(
        (off.power_state, off.last_exit.as_deref()),
        (PowerState::PoweredOff, Some("The guest switched itself off."))
    );
    assert_eq!(host.init.holds(), (vec![], vec![]));
    assert!(host.netd.taps().is_empty());
    assert_eq!(host.power(vm.id, "off").fault().0, "InvalidPowerState");

    let changed: Vm = host
        .send(
            "PATCH",
            &format!("/vms/{}", vm.id),
            &json!({ "memory_mib": 32, "initramfs": "", "cmdline": "new" }),
        )
        .read();
    assert_eq!((changed.memory_mib, changed.initramfs, changed.cmdline.as_str()), (32, None, "new"));
    host.succeed(&host.power(vm.id, "on"));
    host.succeed(&host.power(vm.id, "off"));
    assert_eq!(host.vm(vm.id).last_exit.as_deref(), Some("It was powered off."));

    host.succeed(&http::send(&host.socket(), "DELETE", &format!("/vms/{}", vm.id), b""));
    assert_eq!(host.get(&format!("/vms/{}", vm.id)).status, 404);
    let after: Vec<String> = host.everything();
    assert_eq!(
        after.iter().filter(|f| f.starts_with('/')).collect::<Vec<_>>(),
        before.iter().filter(|f| f.starts_with('/')).collect::<Vec<_>>()
    );
    assert!(!after.iter().any(|f| f.contains("[[vm]]")));
}

#[test]
fn the_console_is_read_streamed_and_typed_into() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let vm = host.create(&spec("talker"));
    assert_eq!(host.get(&format!("/vms/{}/console/stream", vm.id)).fault().0, "InvalidPowerState");
    assert!(host.get(&format!("/vms/{}/console/log", vm.id)).body.is_empty());
    host.succeed(&host.power(vm.id, "on"));
    let monitor = host.init.monitor(vm.id);

    let mut stream = http::connect(&host.socket());
    stream.write_all(http::head("GET", &format!("/vms/{}/console/stream", vm.id), None).as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let (status, _, chunked) = http::answer_head(&mut stream);
    assert_eq!((status, chunked), (200, true));
    let mut seen = String::new();
    let mut until = |text: &str| {
        while !seen.contains(text) {
            seen.push_str(
                &String::from_utf8(
                    http::chunk(&mut stream).unwrap_or_else(|| panic!("the stream ended at {seen:?}")),
                )
                .unwrap(),
            );
        }
    };
    until("Hello from the guest\r\n");
    let typed = http::send(&host.socket(), "POST", &format!("/vms/{}/console/input", vm.id), b"root\n");
    assert_eq!(typed.status, 204);
    until("you typed: root\n");
    let too_much = http::send(
        &host.socket(),
        "POST",
        &format!("/vms/{}/console/input", vm.id),
        &vec![b'x'; (64 << 10) + 1],
    );
    assert_eq!(too_much.status, 413);
    assert!(
        String::from_utf8(host.get(&format!("/vms/{}/console/log", vm.id)).body)
            .unwrap()
            .contains("you typed: root\n")
    );

    // A second reader that leaves is noticed although the guest is silent.
    let mut other = http::connect(&host.socket());
    other.write_all(http::head("GET", &format!("/vms/{}/console/stream", vm.id), None).as_bytes()).unwrap();
    let mut other = BufReader::new(other);
    http::answer_head(&mut other);
    http::chunk(&mut other).unwrap();
    assert_eq!(monitor.consoles(), 2);
    drop(other);
    host.until("the console that its reader left is still open", || monitor.consoles() == 1);

    monitor.end(0, None);
    let mut rest = Vec::new();
    while let Some(part) = http::chunk(&mut stream) {
        rest.extend(part);
    }
    host.init.wait_empty();
    assert_eq!(host.vm(vm.id).power_state, PowerState::PoweredOff);
    assert!(
        String::from_utf8(host.get(&format!("/vms/{}/console/log", vm.id)).body).unwrap().contains("Hello"),
        "the log stays after the end"
    );
}

#[test]
fn a_killed_host_agent_finds_and_controls_its_vms_again() {
    let Some(mut host) = Whole::start_with_kvm() else { return };
    let running = host.create(&spec("running"));
    let ending = host.create(&spec("ending"));
    let deaf = host.create(
        &json!({ "name": "deaf", "memory_mib": 64, "kernel": "[datastore1] vmlinuz", "cmdline": "deaf" }),
    );
    for vm in [&running, &ending, &deaf] {
        host.succeed(&host.power(vm.id, "on"));
    }
    let pending: Task = host.power(deaf.id, "shutdown").read();
    host.host.kill_hostd();
    // While nobody looks, one guest ends.
    host.init.monitor(ending.id).end(0, None);
    host.host.start_hostd();

    host.init.monitor(running.id).print(b"still here\r\n");
    let found = host.vm(running.id);
    assert_eq!((found.power_state, found.name.as_str()), (PowerState::PoweredOn, "running"));
    assert_eq!(host.power(running.id, "on").fault().0, "InvalidPowerState");
    host.succeed(&host.power(running.id, "pause"));
    host.succeed(&host.power(running.id, "resume"));
    host.succeed(&host.power(running.id, "shutdown"));

    // What the last life was doing is told honestly.
    let told: Task = host.get(&format!("/tasks/{}", pending.id)).read();
    assert_eq!(told.state, TaskState::Error);
    assert!(told.message.contains("restarted"), "{}", told.message);
    host.succeed(&host.power(deaf.id, "off"));
    host.init.wait_empty();
    assert_eq!(host.vm(ending.id).last_exit.as_deref(), Some("The guest switched itself off."));
    assert_eq!(host.init.holds(), (vec![], vec![]));
}

#[test]
fn a_vm_that_cannot_start_says_why_and_holds_nothing() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let broken = host.create(&json!({ "name": "broken", "memory_mib": 64, "kernel": "[datastore1] vmlinuz", "cmdline": "broken", "nics": [{ "port_group": "VM Network" }] }));
    let task = host.wait(&host.power(broken.id, "on"));
    assert_eq!(task.state, TaskState::Error);
    assert!(task.message.contains("this kernel cannot be loaded"), "{}", task.message);
    let vm = host.vm(broken.id);
    assert_eq!(vm.power_state, PowerState::PoweredOff);
    assert!(vm.last_exit.unwrap().contains("this kernel cannot be loaded"));
    assert_eq!(host.init.holds(), (vec![], vec![]));
    assert!(host.netd.taps().is_empty());

    // The port group goes after the VM was made; init refuses; the monitor dies by a signal.
    host.netd.remove_port_group("VM Network");
    let task = host.wait(&host.power(broken.id, "on"));
    assert_eq!(task.error.unwrap().field.as_deref(), Some("nics[0].port_group"));
    let plain = host.create(&spec("plain"));
    host.init.refuse(true);
    let task = host.wait(&host.power(plain.id, "on"));
    assert!(task.message.contains("this test says no"), "{}", task.message);
    host.init.refuse(false);
    host.succeed(&host.power(plain.id, "on"));
    host.init.monitor(plain.id).end(-9, None);
    host.init.wait_empty();
    assert!(host.vm(plain.id).last_exit.unwrap().contains("signal 9"));
}

#[test]
fn a_vm_powered_on_while_drivers_are_loaded_waits_for_them() {
    let early = Boot { timeline: vec![Step { name: "units".into(), at_ms: 42 }], ..boot() };
    let Some(host) = Whole::start_with_kvm_on(early) else { return };
    let vm = host.create(&spec("early"));
    let begun = host.power(vm.id, "on");
    let task: Task = begun.read();
    let looked = || host.get(&format!("/tasks/{}?wait=0", task.id)).read::<Task>();
    host.until("the task does not say what it waits for", || looked().message.contains("drivers"));
    assert_eq!((looked().state, looked().cancelable), (TaskState::Running, true));
    assert!(host.init.holds().1.is_empty(), "it was started before the drivers were there");

    // Whoever does not want to wait can cancel it.
    assert_eq!(host.send("POST", &format!("/tasks/{}/cancel", task.id), &json!({})).status, 200);
    assert!(host.wait(&begun).message.contains("cancelled"));

    let begun = host.power(vm.id, "on");
    host.init.step("storage");
    host.init.step(STEP_MACHINES);
    host.succeed(&begun);
}

#[test]
fn a_start_without_an_answer_is_taken_back() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let vm = host.create(&json!({ "name": "lost", "memory_mib": 64, "kernel": "[datastore1] vmlinuz", "nics": [{ "port_group": "VM Network" }] }));
    // init started it, and hostd does not hear of that.
    host.init.break_next("StartVm", Break::After);
    let task = host.wait(&host.power(vm.id, "on"));
    assert_eq!(task.state, TaskState::Error);
    assert!(task.message.contains("it had been started, and was killed"), "{}", task.message);
    assert_eq!(host.vm(vm.id).power_state, PowerState::PoweredOff);
    assert_eq!(host.init.holds(), (vec![], vec![]));
    assert!(host.netd.taps().is_empty());

    // init never heard of it.
    host.init.break_next("StartVm", Break::Before);
    let task = host.wait(&host.power(vm.id, "on"));
    assert_eq!(task.state, TaskState::Error);
    assert!(host.vm(vm.id).last_exit.unwrap().contains("It was not started"));
    assert_eq!(host.init.holds(), (vec![], vec![]));

    // init cannot be asked to kill it either: it runs with all that it has, and the task says what it knows.
    host.init.break_next("StartVm", Break::After);
    host.init.break_next("Kill", Break::Before);
    let task = host.wait(&host.power(vm.id, "on"));
    assert!(task.message.contains("whether it was started is not known"), "{}", task.message);
    host.until("the VM that runs is not shown so", || host.vm(vm.id).power_state == PowerState::PoweredOn);
    assert!(!host.netd.taps().is_empty(), "a VM that may run has lost its network");
    host.succeed(&host.power(vm.id, "off"));
    assert!(host.netd.taps().is_empty());
}

#[test]
fn an_answer_that_is_lost_while_a_vm_is_released_blocks_nothing() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let vm = host.create(&spec("again"));
    for request in ["Forget", "Release"] {
        host.succeed(&host.power(vm.id, "on"));
        host.init.break_next(request, Break::After);
        host.init.monitor(vm.id).end(0, None);
        host.init.wait_empty();
    }
    host.succeed(&host.power(vm.id, "on"));
}

#[test]
fn one_task_works_on_a_vm_and_a_wait_can_be_cancelled() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let vm = host.create(
        &json!({ "name": "deaf", "memory_mib": 64, "kernel": "[datastore1] vmlinuz", "cmdline": "deaf" }),
    );
    host.succeed(&host.power(vm.id, "on"));
    let waiting: Task = host.power(vm.id, "shutdown").read();
    assert!(waiting.cancelable && waiting.who.contains("root"));
    for answer in [
        host.power(vm.id, "off"),
        host.send("PATCH", &format!("/vms/{}", vm.id), &json!({})),
        http::send(&host.socket(), "DELETE", &format!("/vms/{}", vm.id), b""),
    ] {
        assert!(
            ["TaskInProgress", "InvalidPowerState"].contains(&answer.fault().0.as_str()),
            "{}",
            String::from_utf8_lossy(&answer.body)
        );
        assert_eq!(answer.status, 409);
    }
    assert_eq!(host.power(vm.id, "off").fault().0, "TaskInProgress");
    assert_eq!(host.get(&format!("/tasks/{}?wait=0", waiting.id)).read::<Task>().state, TaskState::Running);
    assert_eq!(host.send("POST", &format!("/tasks/{}/cancel", waiting.id), &json!({})).status, 200);
    let ended: Task = host.get(&format!("/tasks/{}?wait=30", waiting.id)).read();
    assert!(ended.state == TaskState::Error && ended.message.contains("cancelled"), "{ended:?}");
    assert_eq!(host.vm(vm.id).power_state, PowerState::PoweredOn);
    host.succeed(&host.power(vm.id, "off"));
    assert_eq!(host.get("/tasks").read::<Vec<Task>>()[0].name, "Power Off Virtual Machine");
}

#[test]
fn without_init_and_netd_the_host_says_so_and_recovers() {
    let mut agent = Agent::new();
    agent.start_hostd();
    let host: Host = agent.get("/host").read();
    let codes: Vec<&str> = host.conditions.iter().map(|c| c.code.as_str()).collect();
    assert!(codes.contains(&"init-unreachable") && codes.contains(&"netd-unreachable"), "{codes:?}");
    agent.put("vmlinuz", &crate::host::bzimage());
    let vm = agent.create(&spec("early"));
    for answer in [
        agent.power(vm.id, "on"),
        agent.get("/network"),
        agent.get("/logs"),
        http::send(&agent.socket(), "DELETE", &format!("/vms/{}", vm.id), b""),
    ] {
        assert_eq!(
            (answer.status, answer.fault().0.as_str()),
            (503, "HostNotReachable"),
            "{}",
            String::from_utf8_lossy(&answer.body)
        );
    }
    let init = FakeInit::start(&agent.run(), boot());
    let _netd = FakeNetd::start(&agent.run());
    init.wait_watched();
    let reached =
        || !agent.get("/host").read::<Host>().conditions.iter().any(|c| c.code == "init-unreachable");
    agent.until("init is not heard", reached);
    let host: Host = agent.get("/host").read();
    let codes: Vec<&str> = host.conditions.iter().map(|c| c.code.as_str()).collect();
    assert!(!codes.contains(&"init-unreachable") && !codes.contains(&"netd-unreachable"), "{codes:?}");
    for code in ["word-ignored", "driver-failed", "no-link"] {
        assert!(codes.contains(&code), "{codes:?}");
    }
    assert_eq!((host.boot_timeline[0].at_ms, host.persistent, host.nics.len()), (42, true, 1));
    agent.succeed(&http::send(&agent.socket(), "DELETE", &format!("/vms/{}", vm.id), b""));
}

#[test]
fn the_network_is_shown_and_changed() {
    let host = Whole::start();
    let network: Network = host.get("/network").read();
    assert!(!network.vmotion_ready);
    assert!(network.vmotion_reason.unwrap().contains("vmk0"));
    assert_eq!(host.get("/host").read::<Host>().conditions.iter().filter(|c| c.code == "no-link").count(), 1);
    let path = "/network/vmkernel-adapters/vmk0";
    let on: Network = host.send("PATCH", path, &json!({ "services": ["management", "vmotion"] })).read();
    assert!(on.vmotion_ready && on.vmotion_reason.is_none());
    assert_eq!(host.netd.config().vmkernel_adapters[0].services.len(), 2);
    let both = json!({ "ipv4": { "mode": "static", "address": "192.0.2.20/24", "gateway": "192.0.2.1" }, "dns": { "servers": ["192.0.2.2"] } });
    let fixed: Network = host.send("PATCH", path, &both).read();
    assert_eq!(fixed.dns.servers.len(), 1);
    assert!(matches!(fixed.vmkernel_adapters[0].ipv4, keelson_api::Ipv4Setting::Static { .. }));
    let before = host.netd.config();
    for (body, field) in [
        (
            json!({ "ipv4": { "mode": "static", "address": "192.0.2.20/24", "gateway": "198.51.100.1" } }),
            "ipv4.gateway",
        ),
        (json!({ "ipv4": { "mode": "static", "address": "192.0.2.0/24" } }), "ipv4.address"),
        (json!({ "services": [] }), "services"),
        (json!({ "dns": { "servers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"] } }), "dns.servers"),
        (json!({ "colour": "blue" }), "colour"),
    ] {
        let answer = host.send("PATCH", path, &body);
        assert_eq!(
            (answer.status, answer.fault()),
            (400, ("InvalidArgument".into(), field.into())),
            "{}",
            String::from_utf8_lossy(&answer.body)
        );
    }
    assert_eq!(host.send("PATCH", "/network/vmkernel-adapters/vmk7", &json!({})).status, 404);
    assert_eq!(host.netd.config(), before);
    host.succeed(&host.send("POST", "/network/restart", &json!({})));
    assert_eq!(host.netd.restarts(), 1);
}

#[test]
fn the_host_is_named_and_shut_down() {
    let mut host = Whole::start();
    let named: Host = host.send("PATCH", "/host", &json!({ "hostname": "esx7" })).read();
    assert_eq!(named.identity.hostname, "esx7");
    assert!(host.init.told().contains(&"hostname esx7".to_owned()));
    for wrong in ["-x", "", "a b", &"x".repeat(64)] {
        let answer = host.send("PATCH", "/host", &json!({ "hostname": wrong }));
        assert_eq!((answer.status, answer.fault().1.as_str()), (400, "hostname"), "{wrong}");
    }
    host.host.kill_hostd();
    host.host.start_hostd();
    assert_eq!(host.get("/identity").json()["hostname"], "esx7");
    assert_eq!(host.init.told().iter().filter(|t| *t == "hostname esx7").count(), 2);
    assert_eq!(
        host.send("POST", "/power", &json!({ "action": "reboot", "guest_deadline_s": 3601 })).fault().1,
        "guest_deadline_s"
    );
    assert_eq!(host.send("POST", "/power", &json!({ "action": "explode" })).status, 400);
    host.succeed(&host.send("POST", "/power", &json!({ "action": "reboot", "guest_deadline_s": 5 })));
    assert!(host.init.told().contains(&"power Reboot 5000".to_owned()));
    assert_eq!(host.get("/logs?max=0").fault().1, "max");
    assert_eq!(host.get("/logs?since=x").status, 400);
    assert_eq!(host.get("/logs?since=0&max=10&source=kernel").json(), json!([]));
}
