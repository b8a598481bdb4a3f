//! Emulated servers: the shipped image boots as a server boots it, and a stock Debian kernel runs on it as a guest. One test, one
//! network; a server is booted once for all that it can show.
#![allow(clippy::unwrap_used, clippy::panic)] // a test ends by panicking

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Result, ensure};
use keelson_api::client::{Client, Fingerprint, LogQuery};
use keelson_api::{HostPower, HostPowerAction, LogLine, Origin, PowerState, Service, VmPowerAction};
use keelson_lab::dhcp_server::DhcpServer;
use keelson_lab::net::LabNet;
use keelson_lab::operator::{self, GuestConsole, StaticAddress};
use keelson_lab::server::{BootFrom, PATIENCE, Server, ServerOptions};
use keelson_lab::{guest, need};

const PASSWORD: &str = "correct horse 7";

fn step(text: &str) {
    eprintln!("  - {text}");
}

/// Runs a server's test; when it fails, its console and logs stay in a folder that is printed.
fn watched(server: &Server, client: Option<&Client>, test: impl FnOnce() -> Result<()>) {
    let Err(error) = test() else { return };
    let folder = std::env::temp_dir().join(format!("keelson-failed-{}", std::process::id()));
    let mut kept =
        vec![("console.txt", server.console.transcript()), ("screen.txt", server.console.screen())];
    if let Some(lines) = client.and_then(|c| c.logs(&Default::default()).ok()) {
        kept.push((
            "host-log.txt",
            lines.iter().map(|l| format!("{} {} {} {}\n", l.time, l.source, l.level, l.text)).collect(),
        ));
    }
    if let Ok(log) = std::fs::read_to_string(server.directory().join("qemu.log")) {
        kept.push(("qemu.txt", log));
    }
    let _ = std::fs::create_dir_all(&folder);
    for (name, text) in kept {
        let _ = std::fs::write(folder.join(name), text);
    }
    panic!("{error:#}\nconsoles and logs: {}", folder.display());
}

fn power(client: &Client, vm: &keelson_api::Vm, action: VmPowerAction) -> Result<keelson_api::Vm> {
    let task = client.vm_power(vm.id, action)?;
    operator::finish(client, task)?;
    Ok(client.vm(vm.id)?)
}

#[test]
fn a_server_boots_by_dhcp_and_runs_a_stock_guest_that_outlives_the_daemons() {
    need!(Lab);
    let net = LabNet::enter().unwrap();
    let _dhcp = DhcpServer::start("lab0", Default::default()).unwrap();
    let server = Server::start(&net, &ServerOptions::new("dhcp", BootFrom::Disk)).unwrap();
    watched(&server, None, || {
        let address = operator::address_on_screen(&server.console, PATIENCE)?.to_string();
        server.console.wait_screen("DHCP", PATIENCE)?;
        let pin = operator::wait_api(&address, PATIENCE)?;
        step(&format!("API ready {:.1} s after power-on", server.power_on.elapsed().as_secs_f64()));
        operator::first_password(&server.console, PASSWORD, PATIENCE)?;
        let client = operator::log_in(&address, pin, PASSWORD)?;
        let facts = client.get_host()?;
        ensure!(facts.kvm.available, "{:?}", facts.kvm);
        ensure!(facts.persistent, "{:?}", facts.conditions);
        ensure!(!facts.vmotion_ready && facts.vmotion_reason.is_some());
        step(&format!(
            "timeline: {}",
            facts
                .boot_timeline
                .iter()
                .map(|s| format!("{} {} ms", s.name, s.at_ms))
                .collect::<Vec<_>>()
                .join(", ")
        ));

        operator::upload_guest(&client, |_, _| ())?;
        let vm = client.create_vm(&operator::guest_spec("debian", "dhcp"))?;
        let vm = power(&client, &vm, VmPowerAction::On)?;
        ensure!(vm.power_state == PowerState::PoweredOn);
        let mut console = GuestConsole::open(&client, &vm, |_| ())?;
        let guest_address = console.address(PATIENCE)?;
        step(&format!("guest is ready at {guest_address}:\n{}", console.text()));
        ensure!(
            console.text().contains("guest: disk 32768 sectors, mark []"),
            "the new disk: {}",
            console.text()
        );
        ensure!(console.text().contains("guest: hwrng virtio_rng"), "the entropy device: {}", console.text());
        client.console_input(vm.id, b"echo answer=$((6*7))\r")?;
        console.wait("answer=42", PATIENCE)?;
        ensure!(operator::fetch_page(guest_address, PATIENCE)?.starts_with("hello from Linux"));
        step("it answers from outside the server, through vmnic0 and vSwitch0");

        // A restart of an agent is a SIGKILL by init: the daemons are made to survive it, so there is no gentler way.
        for daemon in ["dcui", "netd", "hostd"] {
            let client = operator::log_in(&address, pin, PASSWORD)?;
            client.restart_agent(daemon)?;
            ensure!(
                operator::fetch_page(guest_address, PATIENCE)?.starts_with("hello"),
                "while {daemon} was dead"
            );
            let client = after_kill(&address, pin, daemon)?;
            ensure!(client.vm(vm.id)?.power_state == PowerState::PoweredOn, "after {daemon} died");
        }
        step("hostd, netd and dcui were killed under it");
        let client = operator::log_in(&address, pin, PASSWORD)?;
        // The guest switches itself off; the API sees it without being asked.
        client.console_input(vm.id, b"poweroff -f\r")?;
        console.ended(PATIENCE)?;
        wait_power(&client, vm.id, PowerState::PoweredOff)?;
        step("the guest switched itself off, and the API says so");
        let vm = power(&client, &vm, VmPowerAction::On)?;
        let mut console = GuestConsole::open(&client, &vm, |_| ())?;
        console.wait(guest::READY, PATIENCE)?;
        ensure!(
            console.text().contains("mark [booted]"),
            "the disk keeps what was written: {}",
            console.text()
        );
        client.host_power(&HostPower { action: HostPowerAction::PowerOff, guest_deadline_s: 60 })?;
        console.wait("guest: power button", PATIENCE)?;
        ensure!(server.wait_off(PATIENCE)?.success());
        step("the host shut down with the guest running, which got its power button");
        Ok(())
    });
}

/// Waits until init says that the daemon was killed, and the host agent answers.
fn after_kill(address: &str, pin: Fingerprint, daemon: &str) -> Result<Client> {
    let end = Instant::now() + PATIENCE;
    loop {
        let client = operator::log_in_again(address, pin, PASSWORD, PATIENCE)?;
        let query = LogQuery { source: Some("init".into()), ..LogQuery::default() };
        let killed = |line: &LogLine| {
            line.text.contains(&format!("unit {daemon}")) && line.text.contains("ended by signal 9")
        };
        // A host agent that is about to be killed may break the answer off.
        match client.logs(&query) {
            Ok(lines) if lines.iter().any(killed) => return Ok(client),
            Err(e) if e.fault().is_some() => return Err(e.into()),
            _ => ensure!(Instant::now() < end, "init does not say that {daemon} was killed"),
        }
    }
}

fn wait_power(client: &Client, id: keelson_api::Uuid, state: PowerState) -> Result<()> {
    // The console's end is the event; the API may notice the monitor's exit a moment later.
    let end = Instant::now() + PATIENCE;
    while client.vm(id)?.power_state != state {
        ensure!(Instant::now() < end, "the VM is still {:?}", client.vm(id)?.power_state);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn a_server_takes_a_static_address_from_its_command_line() {
    need!(Lab);
    let net = LabNet::enter().unwrap();
    let options = ServerOptions::new("static", BootFrom::Disk)
        .word("keelson.address=192.0.2.60/24")
        .word("keelson.gateway=192.0.2.1")
        .word("keelson.hostname=esx-lab")
        .word("keelson.flavour=mint");
    let server = Server::start(&net, &options).unwrap();
    watched(&server, None, || {
        operator::wait_api("192.0.2.60", PATIENCE)?;
        server.console.wait_screen("STATIC", PATIENCE)?;
        server.console.wait_screen("esx-lab", PATIENCE)?;
        server.console.wait_screen("flavour=mint", PATIENCE)?;
        Ok(())
    });
}

#[test]
fn a_server_is_set_up_by_console_keys_alone_and_keeps_it_over_a_reboot() {
    need!(Lab);
    let net = LabNet::enter().unwrap();
    let server = Server::start(&net, &ServerOptions::new("keys", BootFrom::Disk)).unwrap();
    watched(&server, None, || {
        operator::first_password(&server.console, PASSWORD, PATIENCE)?;
        let fixed = StaticAddress { address: "192.0.2.61", mask: "255.255.255.0", gateway: "192.0.2.1" };
        operator::configure_network(&server.console, fixed, true, PATIENCE)?;
        let pin = operator::wait_api("192.0.2.61", PATIENCE)?;
        let client = operator::log_in("192.0.2.61", pin, PASSWORD)?;
        let before = client.get_host()?;
        client.host_power(&HostPower { action: HostPowerAction::Reboot, guest_deadline_s: 1 })?;
        step("set up by keys; rebooting");
        let end = Instant::now() + PATIENCE;
        let after = loop {
            let again = operator::wait_api("192.0.2.61", PATIENCE)?;
            ensure!(again == pin, "the certificate changed over the reboot");
            match operator::log_in("192.0.2.61", pin, PASSWORD).and_then(|c| Ok(c.get_host()?)) {
                Ok(host) if host.boot_id != before.boot_id => break host,
                _ => ensure!(Instant::now() < end, "the server did not come back"),
            }
        };
        ensure!(after.identity.host_id == before.identity.host_id);
        ensure!(after.vmotion_ready, "{:?}", after.vmotion_reason);
        let client = operator::log_in("192.0.2.61", pin, PASSWORD)?;
        let adapter = client.network()?.vmkernel_adapters.remove(0);
        ensure!(adapter.services == BTreeSet::from([Service::Management, Service::Vmotion]));
        let address = adapter.address.as_ref().map(|a| (a.address.addr(), a.origin));
        ensure!(address == Some((Ipv4Addr::new(192, 0, 2, 61), Origin::Static)), "{address:?}");
        Ok(())
    });
}

#[test]
fn a_server_without_virtualisation_and_with_a_torn_state_partition_boots_and_says_so() {
    need!(Lab);
    let net = LabNet::enter().unwrap();
    let mut options = ServerOptions::new("torn", BootFrom::Disk);
    options.conf =
        Some("# an owner's words\naddress = 192.0.2.62/24\nhostname = torn-1\nshape = round\n".into());
    options.svm = false;
    options.tear_state = true;
    let server = Server::start(&net, &options).unwrap();
    watched(&server, None, || {
        operator::wait_api("192.0.2.62", PATIENCE)?;
        operator::first_password(&server.console, PASSWORD, PATIENCE)?;
        let pin = operator::wait_api("192.0.2.62", PATIENCE)?;
        let facts = operator::log_in("192.0.2.62", pin, PASSWORD)?.get_host()?;
        let codes: BTreeSet<&str> = facts.conditions.iter().map(|c| c.code.as_str()).collect();
        ensure!(
            codes.is_superset(&["kvm-missing", "state-corrupt", "word-ignored"].into()),
            "{:?}",
            facts.conditions
        );
        ensure!(!facts.persistent && !facts.kvm.available);
        ensure!(facts.identity.hostname == "torn-1", "the ESP's keelson.conf: {}", facts.identity.hostname);
        Ok(())
    });
}
