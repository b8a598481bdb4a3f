//! Light hosts: the shipped init, netd, hostd and dcui, driven from outside as a user does. One test, one network, one host (or two
//! in a row on the same state).
#![allow(clippy::unwrap_used, clippy::panic)] // a test ends by panicking

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keelson_api::client::{Client, ClientError};
use keelson_api::{
    AdapterUpdate, DiskSpec, Fault, HostPower, HostPowerAction, Ipv4Setting, Network, NicSpec, Origin,
    PasswordChange, PowerState, Service, Vm, VmPowerAction, VmSpec,
};
use keelson_lab::console::keys;
use keelson_lab::dhcp_server::DhcpServer;
use keelson_lab::light::{LightHost, LightOptions};
use keelson_lab::net::LabNet;
use keelson_lab::operator::{self, GuestConsole};
use keelson_lab::{need, payload, process};

const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "correct horse 7";

fn one_nic() -> LightOptions {
    LightOptions { nics: 1, ..LightOptions::default() }
}

/// A host that root can log in to over the network: its HTTPS address and a logged-in client.
fn set_up(host: &LightHost) -> Result<(String, Client)> {
    host.wait_agent(PATIENCE)?.change_password(&PasswordChange { current: None, new: PASSWORD.into() })?;
    let address = operator::address_on_screen(&host.console, PATIENCE)?.to_string();
    let pin = operator::wait_api(&address, PATIENCE)?;
    let client = operator::log_in(&address, pin, PASSWORD)?;
    Ok((address, client))
}

fn fault<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Option<Fault> {
    result.err().and_then(|e| e.fault())
}

fn services(network: &Network) -> BTreeSet<Service> {
    network.vmkernel_adapters.iter().flat_map(|a| a.services.clone()).collect()
}

/// Uploads the polling payload and makes a VM of it.
fn payload_vm(client: &Client, name: &str) -> Result<Vm> {
    let kernel = payload::build()?;
    client.upload(
        "datastore1",
        "payload/payload.elf",
        &mut kernel.as_slice(),
        kernel.len() as u64,
        &mut |_| (),
    )?;
    Ok(client.create_vm(&VmSpec {
        name: name.into(),
        datastore: None,
        vcpus: 1,
        memory_mib: 64,
        cpu: keelson_api::VmCpu::default(),
        kernel: "[datastore1] payload/payload.elf".into(),
        initramfs: None,
        cmdline: payload::SERVE.into(),
        disks: vec![],
        nics: vec![NicSpec { port_group: "VM Network".into(), mac: None }],
    })?)
}

fn power(client: &Client, vm: &Vm, action: VmPowerAction) -> Result<Vm> {
    let task = client.vm_power(vm.id, action)?;
    operator::finish(client, task)?;
    Ok(client.vm(vm.id)?)
}

/// The payload answers each byte with the next one in the alphabet, so an answer is not an echo of ours.
fn answers(client: &Client, vm: &Vm, console: &mut GuestConsole, ask: &str, answer: &str) -> Result<()> {
    client.console_input(vm.id, ask.as_bytes())?;
    console.wait(answer, PATIENCE).map(|_| ())
}

#[test]
fn a_new_host_comes_up_by_dhcp_and_is_set_up_at_its_console() {
    need!(Lab);
    inner().unwrap();
    fn inner() -> Result<()> {
        let net = LabNet::enter()?;
        let _dhcp = DhcpServer::start("lab0", Default::default())?;
        let state = process::scratch("state")?;
        let options = LightOptions { state: Some(state.path().into()), ..one_nic() };
        let host = LightHost::start(&net, &options)?;
        let address = operator::address_on_screen(&host.console, PATIENCE)?.to_string();
        host.console.wait_screen("DHCP", PATIENCE)?;
        let pin = operator::wait_api(&address, PATIENCE)?;
        // The screen breaks the fingerprint over lines; its first pairs are enough to compare.
        host.console.wait_screen(&pin.to_string()[..23], PATIENCE)?;

        // Until root has a password, the network side serves identity and health, and nothing else.
        let stranger = Client::https(&address, pin)?;
        ensure!(stranger.health()?.status == "ok");
        let identity = stranger.identity()?;
        ensure!(!identity.password_set && identity.product == "Keelson");
        ensure!(fault(stranger.get_host()) == Some(Fault::PasswordNotSet));
        ensure!(
            fault(stranger.login(&keelson_api::Login { username: "root".into(), password: String::new() }))
                == Some(Fault::PasswordNotSet)
        );

        operator::first_password(&host.console, PASSWORD, PATIENCE)?;
        ensure!(fault(stranger.get_host()) == Some(Fault::NotAuthenticated));
        let wrong = operator::log_in(&address, pin, "not the password").unwrap_err();
        ensure!(
            wrong.downcast_ref::<ClientError>().and_then(ClientError::fault) == Some(Fault::NotAuthenticated),
            "{wrong:#}"
        );
        let client = operator::log_in(&address, pin, PASSWORD)?;
        let facts = client.get_host()?;
        ensure!(facts.persistent && facts.cpu.threads > 0 && facts.memory.total_bytes > 0, "{facts:?}");
        ensure!(
            facts.nics.len() == 1 && facts.nics[0].name == "vmnic0" && facts.nics[0].link,
            "{:?}",
            facts.nics
        );

        // vMotion is off until someone switches it on; the setting stays over a restart of the host.
        let network = client.network()?;
        ensure!(
            !network.vmotion_ready && network.vmotion_reason.as_deref().is_some_and(|r| r.contains("vmk0")),
            "{network:?}"
        );
        ensure!(services(&network) == [Service::Management].into());
        let both = AdapterUpdate {
            services: Some([Service::Management, Service::Vmotion].into()),
            ..AdapterUpdate::default()
        };
        let network = client.update_adapter("vmk0", &both)?;
        ensure!(network.vmotion_ready && network.vmotion_reason.is_none(), "{network:?}");
        client.host_power(&HostPower { action: HostPowerAction::Reboot, guest_deadline_s: 1 })?;
        ensure!(host.wait_off(PATIENCE)?.code() == Some(3), "a restart is told apart from a shut-down");
        drop(host);

        let host = LightHost::start(&net, &options)?;
        let address = operator::address_on_screen(&host.console, PATIENCE)?.to_string();
        ensure!(operator::wait_api(&address, PATIENCE)? == pin, "the certificate stays over a restart");
        let client = operator::log_in(&address, pin, PASSWORD)?;
        ensure!(client.network()?.vmotion_ready);
        ensure!(client.identity()?.host_id == identity.host_id);
        Ok(())
    }
}

#[test]
fn a_static_address_is_set_at_the_console_and_stays() {
    need!(Lab);
    inner().unwrap();
    fn inner() -> Result<()> {
        let net = LabNet::enter()?;
        let state = process::scratch("state")?;
        let options = LightOptions { state: Some(state.path().into()), ..one_nic() };
        let host = LightHost::start(&net, &options)?;
        host.wait_agent(PATIENCE)?;
        operator::first_password(&host.console, PASSWORD, PATIENCE)?;
        let fixed =
            operator::StaticAddress { address: "192.0.2.77", mask: "255.255.255.0", gateway: "192.0.2.1" };
        operator::configure_network(&host.console, fixed, false, PATIENCE)?;
        let pin = operator::wait_api("192.0.2.77", PATIENCE)?;
        host.power_cut();
        drop(host);
        let host = LightHost::start(&net, &options)?;
        host.console.wait_screen("192.0.2.77", PATIENCE)?;
        host.console.wait_screen("STATIC", PATIENCE)?;
        ensure!(operator::wait_api("192.0.2.77", PATIENCE)? == pin);
        Ok(())
    }
}

#[test]
fn words_are_taken_and_wrong_ones_are_named() {
    need!(Lab);
    inner().unwrap();
    fn inner() -> Result<()> {
        let net = LabNet::enter()?;
        let words = [
            "keelson.address=192.0.2.88/24",
            "keelson.gateway=192.0.2.1",
            "keelson.hostname=lighthouse",
            "keelson.colour=blue",
        ];
        let host =
            LightHost::start(&net, &LightOptions { words: words.map(String::from).into(), ..one_nic() })?;
        host.console.wait_screen("192.0.2.88", PATIENCE)?;
        host.console.wait_screen("lighthouse", PATIENCE)?;
        let facts = host.wait_agent(PATIENCE)?.get_host()?;
        ensure!(
            facts.conditions.iter().any(|c| c.code == "word-ignored" && c.message.contains("colour=blue")),
            "{:?}",
            facts.conditions
        );
        operator::wait_api("192.0.2.88", PATIENCE)?;
        Ok(())
    }
}

/// The hash is made by a host that was given the password; another host is told it at power-on, and is open to its owner at once.
#[test]
fn a_password_hash_at_power_on_opens_the_network_side() {
    need!(Lab);
    inner().unwrap();
    fn inner() -> Result<()> {
        let net = LabNet::enter()?;
        let hash = {
            let host = LightHost::start(&net, &one_nic())?;
            let password = PasswordChange { current: None, new: PASSWORD.into() };
            host.wait_agent(PATIENCE)?.change_password(&password)?;
            let accounts = std::fs::read_to_string(host.inside("/state/hostd/accounts.toml"))?;
            let root = accounts.lines().find_map(|l| l.strip_prefix("root = ")).context("no hash is kept")?;
            root.trim_matches('"').to_owned()
        };
        let address = "192.0.2.89";
        let words = vec![format!("keelson.address={address}/24"), format!("keelson.root_hash={hash}")];
        let host = LightHost::start(&net, &LightOptions { words, ..one_nic() })?;
        let pin = operator::wait_api(address, PATIENCE)?;
        ensure!(operator::log_in(address, pin, "another one 7").is_err(), "any password opens it");
        let client = operator::log_in(address, pin, PASSWORD)?;
        ensure!(client.get_host()?.identity.password_set, "it says that no password is set");
        ensure!(!host.init_log().contains("argon2id"), "the hash is in the log");
        Ok(())
    }
}

#[test]
fn without_nic_kvm_or_state_it_boots_and_says_so() {
    need!(Lab);
    inner().unwrap();
    fn inner() -> Result<()> {
        let net = LabNet::enter()?;
        let host = LightHost::start(
            &net,
            &LightOptions { no_kvm: true, ephemeral: true, ..LightOptions::default() },
        )?;
        let client = host.wait_agent(PATIENCE)?;
        let facts = client.get_host()?;
        let codes: BTreeSet<&str> = facts.conditions.iter().map(|c| c.code.as_str()).collect();
        ensure!(codes.is_superset(&["no-nic", "kvm-missing", "state-missing"].into()), "{codes:?}");
        ensure!(!facts.persistent && !facts.kvm.available && facts.kvm.reason.is_some());
        ensure!(client.datastores()?[0].kind == "ram");
        // The rest works: a VM can be made, and powering it on says what is missing.
        let kernel = payload::build()?;
        client.upload("datastore1", "k.elf", &mut kernel.as_slice(), kernel.len() as u64, &mut |_| ())?;
        let spec = VmSpec {
            nics: vec![],
            kernel: "[datastore1] k.elf".into(),
            ..operator::guest_spec("blocked", "dhcp")
        };
        let vm = client.create_vm(&VmSpec { initramfs: None, disks: vec![], ..spec })?;
        let refused = client
            .vm_power(vm.id, VmPowerAction::On)
            .map_err(anyhow::Error::from)
            .and_then(|t| operator::finish(&client, t))
            .unwrap_err();
        ensure!(
            facts
                .kvm
                .reason
                .as_deref()
                .is_some_and(|why| format!("{refused:#}").contains(why.split(';').next().unwrap_or(why))),
            "{refused:#}"
        );
        host.console.wait_screen("cannot run VMs", PATIENCE)?;
        Ok(())
    }
}

#[test]
fn with_a_full_state_partition_it_boots_says_so_and_is_reached() {
    need!(Lab);
    inner().unwrap();
    /// A file system of 64 KiB for the time of a test.
    struct Small(std::path::PathBuf);
    impl Drop for Small {
        fn drop(&mut self) {
            let _ = process::run("umount", &["--lazy", &self.0.display().to_string()]);
        }
    }
    fn inner() -> Result<()> {
        let net = LabNet::enter()?;
        let dir = process::scratch("full")?;
        let place = dir.path();
        let _small = Small(place.to_owned());
        process::run("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs", &place.display().to_string()])?;
        ensure!(std::fs::write(place.join("full"), vec![1; 1 << 20]).is_err(), "it is not full");
        let words = vec!["keelson.address=192.0.2.90/24".into()];
        let options = LightOptions { words, state: Some(place.to_owned()), ..one_nic() };
        let host = LightHost::start(&net, &options)?;
        host.console.wait_screen("192.0.2.90", PATIENCE)?;
        let facts = host.wait_agent(PATIENCE)?.get_host()?;
        ensure!(facts.conditions.iter().any(|c| c.code == "state-not-writable"), "{:?}", facts.conditions);
        operator::wait_api("192.0.2.90", PATIENCE)?;
        Ok(())
    }
}

#[test]
fn unanswered_dhcp_gives_a_link_local_address_until_a_server_comes() {
    need!(Lab);
    inner().unwrap();
    fn inner() -> Result<()> {
        let net = LabNet::enter()?;
        let host = LightHost::start(&net, &one_nic())?;
        let client = host.wait_agent(PATIENCE)?;
        host.console.wait_screen("https://169.254.", PATIENCE)?;
        // The address may be there before the wait counts as long.
        host.console.wait_screen("got no address", PATIENCE)?;
        let network = client.network()?;
        ensure!(network.conditions.iter().any(|c| c.code == "dhcp-unanswered"), "{:?}", network.conditions);
        ensure!(
            network.vmkernel_adapters[0].address.as_ref().is_some_and(|a| a.origin == Origin::LinkLocal),
            "{network:?}"
        );
        let _dhcp = DhcpServer::start("lab0", Default::default())?;
        host.console.wait_screen("https://192.0.2.", Duration::from_secs(120))?;
        Ok(())
    }
}

#[test]
fn a_pulled_cable_is_told_and_heals() {
    need!(Lab);
    inner().unwrap();
    fn inner() -> Result<()> {
        let net = LabNet::enter()?;
        let words = vec!["keelson.address=192.0.2.89/24".into()];
        let host = LightHost::start(&net, &LightOptions { words, ..one_nic() })?;
        operator::wait_api("192.0.2.89", PATIENCE)?;
        let client = host.wait_agent(PATIENCE)?;
        net.set_link(&host.cables[0], false)?;
        host.console.wait_screen("no link", PATIENCE)?;
        ensure!(client.network()?.conditions.iter().any(|c| c.code == "no-link"));
        net.set_link(&host.cables[0], true)?;
        host.console.wait("no word of a missing link", PATIENCE, |screen, _| {
            (!screen.contains("no link")).then_some(())
        })?;
        operator::wait_api("192.0.2.89", PATIENCE)?;
        Ok(())
    }
}

#[test]
fn a_vm_lives_through_the_death_of_every_daemon() {
    need!(Lab);
    need!(Kvm);
    inner().unwrap();
    fn inner() -> Result<()> {
        let net = LabNet::enter()?;
        let _dhcp = DhcpServer::start("lab0", Default::default())?;
        let host = LightHost::start(&net, &one_nic())?;
        let (address, client) = set_up(&host)?;
        let vm = payload_vm(&client, "steady")?;
        ensure!(vm.power_state == PowerState::PoweredOff);
        let vm = power(&client, &vm, VmPowerAction::On)?;
        ensure!(vm.power_state == PowerState::PoweredOn, "{vm:?}");
        let monitor = host.pids("keelson-vmm")?;
        ensure!(monitor.len() == 1, "{monitor:?}");
        let mut console = GuestConsole::open(&client, &vm, |_| ())?;
        console.wait(payload::HELLO, PATIENCE)?;
        answers(&client, &vm, &mut console, "abc", "bcd")?;

        for daemon in ["hostd", "netd", "dcui"] {
            host.kill_unit(daemon)?;
            let pin = operator::wait_api(&address, PATIENCE)?;
            let client = operator::log_in(&address, pin, PASSWORD)?;
            let now = client.vm(vm.id)?;
            ensure!(now.power_state == PowerState::PoweredOn, "after {daemon} died: {now:?}");
            let mut console = GuestConsole::open(&client, &vm, |_| ())?;
            answers(&client, &vm, &mut console, "mno", "nop")?;
            ensure!(host.pids("keelson-vmm")? == monitor, "the VM's process changed when {daemon} died");
        }
        let pin = operator::wait_api(&address, PATIENCE)?;
        let client = operator::log_in(&address, pin, PASSWORD)?;
        let paused = power(&client, &vm, VmPowerAction::Pause)?;
        ensure!(paused.power_state == PowerState::Paused);
        ensure!(power(&client, &vm, VmPowerAction::Resume)?.power_state == PowerState::PoweredOn);
        power(&client, &vm, VmPowerAction::Reset)?;
        let mut console = GuestConsole::open(&client, &vm, |_| ())?;
        answers(&client, &vm, &mut console, "xy", "yz")?;
        ensure!(fault(client.delete_vm(vm.id)) == Some(Fault::InvalidPowerState));
        // The payload obeys its power button.
        let vm = power(&client, &vm, VmPowerAction::Shutdown)?;
        ensure!(vm.power_state == PowerState::PoweredOff && vm.last_exit.is_some(), "{vm:?}");
        ensure!(host.pids("keelson-vmm")?.is_empty());
        let task = client.delete_vm(vm.id)?;
        operator::finish(&client, task)?;
        ensure!(client.vms()?.is_empty());
        Ok(())
    }
}

#[test]
fn the_host_shuts_down_with_a_guest_running() {
    need!(Lab);
    need!(Kvm);
    inner().unwrap();
    fn inner() -> Result<()> {
        let net = LabNet::enter()?;
        let _dhcp = DhcpServer::start("lab0", Default::default())?;
        let host = LightHost::start(&net, &one_nic())?;
        let (_, client) = set_up(&host)?;
        let vm = payload_vm(&client, "last")?;
        power(&client, &vm, VmPowerAction::On)?;
        GuestConsole::open(&client, &vm, |_| ())?.wait(payload::HELLO, PATIENCE)?;
        client.host_power(&HostPower { action: HostPowerAction::PowerOff, guest_deadline_s: 30 })?;
        ensure!(host.wait_off(PATIENCE)?.success(), "{}", host.init_log());
        Ok(())
    }
}

#[test]
fn f12_at_the_console_shuts_the_host_down() {
    need!(Lab);
    inner().unwrap();
    fn inner() -> Result<()> {
        let net = LabNet::enter()?;
        let host = LightHost::start(&net, &one_nic())?;
        host.wait_agent(PATIENCE)?
            .change_password(&PasswordChange { current: None, new: PASSWORD.into() })?;
        // Until the console has heard of the password it asks for none.
        host.console.wait("a console that knows of the password", PATIENCE, |screen, _| {
            (screen.contains("fingerprint") && !screen.contains("No password is set")).then_some(())
        })?;
        host.console.type_keys(keys::F12)?;
        host.console.wait_screen("Password", PATIENCE)?;
        host.console.type_keys(&format!("{PASSWORD}{}", keys::ENTER))?;
        host.console.wait_screen("<F11>", PATIENCE)?;
        host.console.type_keys(keys::F2)?;
        ensure!(host.wait_off(PATIENCE)?.success(), "{}", host.init_log());
        Ok(())
    }
}

/// What the adapters are set to; how long their leases go on changes by itself.
fn settings(client: &Client) -> Result<Vec<(String, Ipv4Setting, BTreeSet<Service>)>> {
    let adapters = client.network()?.vmkernel_adapters.into_iter();
    Ok(adapters.map(|a| (a.name, a.ipv4, a.services)).collect())
}

/// What is on the datastore, for "nothing left behind".
fn listing(host: &LightHost) -> Result<BTreeSet<String>> {
    fn walk(directory: &Path, found: &mut BTreeSet<String>) -> Result<()> {
        for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
            let entry = entry?;
            found.insert(entry.path().display().to_string());
            if entry.file_type()?.is_dir() {
                walk(&entry.path(), found)?;
            }
        }
        Ok(())
    }
    let mut found = BTreeSet::new();
    walk(&host.inside("/state/datastore"), &mut found)?;
    Ok(found)
}

#[test]
fn bad_input_is_refused_precisely_and_changes_nothing() {
    need!(Lab);
    inner().unwrap();
    fn inner() -> Result<()> {
        let net = LabNet::enter()?;
        let _dhcp = DhcpServer::start("lab0", Default::default())?;
        let host = LightHost::start(&net, &one_nic())?;
        let (_, client) = set_up(&host)?;
        payload_vm(&client, "taken")?;
        let text = b"this is no kernel".repeat(100);
        client.upload("datastore1", "notes.txt", &mut text.as_slice(), text.len() as u64, &mut |_| ())?;
        let before = (listing(&host)?, client.vms()?, settings(&client)?);
        let good = || VmSpec {
            initramfs: None,
            disks: vec![],
            nics: vec![],
            kernel: "[datastore1] payload/payload.elf".into(),
            ..operator::guest_spec("fresh", "dhcp")
        };
        let cases: Vec<(VmSpec, Fault, &str)> = vec![
            (VmSpec { name: "taken".into(), ..good() }, Fault::DuplicateName, "name"),
            (VmSpec { name: "../etc".into(), ..good() }, Fault::InvalidArgument, "name"),
            (VmSpec { vcpus: 0, ..good() }, Fault::InvalidArgument, "vcpus"),
            (VmSpec { vcpus: 100_000, ..good() }, Fault::InvalidArgument, "vcpus"),
            (VmSpec { memory_mib: 0, ..good() }, Fault::InvalidArgument, "memory_mib"),
            (VmSpec { memory_mib: 1 << 30, ..good() }, Fault::InsufficientResourcesFault, "memory_mib"),
            (VmSpec { kernel: "[datastore1] notes.txt".into(), ..good() }, Fault::InvalidArgument, "kernel"),
            (
                VmSpec { kernel: "[datastore1] ../../hostd/accounts.toml".into(), ..good() },
                Fault::InvalidDatastorePath,
                "kernel",
            ),
            (VmSpec { kernel: "[datastore1] nothing".into(), ..good() }, Fault::InvalidArgument, "kernel"),
            (
                VmSpec { nics: vec![NicSpec { port_group: "Nowhere".into(), mac: None }], ..good() },
                Fault::InvalidArgument,
                "nics[0].port_group",
            ),
        ];
        // `[a]b` and `[a] b` are one file.
        let disk = |path: &str| DiskSpec { path: Some(path.into()), ..DiskSpec::default() };
        let twice = vec![disk("[datastore1] notes.txt"), disk("[datastore1]notes.txt")];
        let cases = cases.into_iter().chain([(
            VmSpec { disks: twice, ..good() },
            Fault::InvalidArgument,
            "disks[1].path",
        )]);
        for (spec, expected, field) in cases {
            match client.create_vm(&spec) {
                Err(ClientError::Problem(problem)) => {
                    ensure!(problem.fault == expected, "{spec:?}: {problem:?}");
                    ensure!(problem.field.as_deref() == Some(field), "{spec:?}: {problem:?}");
                }
                other => anyhow::bail!("{spec:?}: {other:?}"),
            }
        }
        let bad_gateway =
            Ipv4Setting::Static { address: "192.0.2.5/24".parse()?, gateway: Some("203.0.113.1".parse()?) };
        let refused = client
            .update_adapter("vmk0", &AdapterUpdate { ipv4: Some(bad_gateway), ..AdapterUpdate::default() });
        ensure!(fault(refused) == Some(Fault::InvalidArgument));
        let empty = b"x".as_slice();
        ensure!(fault(client.upload("datastore1", "../escape", &mut { empty }, 1, &mut |_| ())).is_some());
        ensure!(
            fault(client.upload("nowhere", "file", &mut { empty }, 1, &mut |_| ())) == Some(Fault::NotFound)
        );
        // More than the store holds is refused before a byte is taken; an upload that breaks off leaves nothing.
        let huge = 1u64 << 42;
        ensure!(
            fault(client.upload("datastore1", "huge", &mut std::io::repeat(0), huge, &mut |_| ()))
                == Some(Fault::NoDiskSpace)
        );
        ensure!(client.upload("datastore1", "cut", &mut { empty }, 1000, &mut |_| ()).is_err());
        // The host notices a broken-off upload a moment after its client has gone.
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let after = (listing(&host)?, client.vms()?, settings(&client)?);
            if before == after {
                break;
            }
            ensure!(std::time::Instant::now() < end, "something changed: {before:?} {after:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}
