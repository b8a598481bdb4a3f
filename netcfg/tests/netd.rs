//! netd as a whole: the real binary on this machine's kernel, against a DHCP server that misbehaves on demand.

#![allow(clippy::expect_used, clippy::panic)] // A test ends so.

mod host;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Result;
use dhcproto::v4::MessageType;
use host::{Host, has_problem, reachable, vmk0};
use keelson_lab::dhcp_server::{DhcpServer, Habits, Mood};
use keelson_netcfg_control::{AddressOrigin, Error, Ipv4, Refusal, Service, VSwitch};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use uuid::Uuid;

/// Runs a test on a thread of its own, as the lab's network is the thread's; skips it loudly without root.
fn lab(test: fn() -> Result<()>) {
    if !nix::unistd::geteuid().is_root() {
        keelson_lab::need::skip(keelson_lab::need::Tier::Lab, "root, for network namespaces");
        return;
    }
    if let Err(e) = std::thread::spawn(test).join().expect("the test's thread") {
        panic!("{e:?}");
    }
}

const SOON: Duration = Duration::from_secs(15);

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("a refusal was due, not {other:?}"),
    }
}

#[test]
fn a_lease_and_a_tap_outlive_a_crash_of_netd_untouched() {
    lab(|| {
        let mut host = Host::new(2)?;
        let server = DhcpServer::start("lab0", Habits::default())?;
        host.start()?;
        let adapter = host.wait_address(AddressOrigin::Dhcp, SOON)?;
        assert_eq!(adapter.addresses[0].to_string(), "192.0.2.100/24");
        let status = host.wait("the default route", SOON, |s| vmk0(s).gateway.is_some())?;
        assert_eq!(status.dns_servers, [Ipv4Addr::new(192, 0, 2, 1)]);
        assert_eq!(
            status.nics.iter().map(|n| (n.name.as_str(), n.vswitch.as_deref())).collect::<Vec<_>>(),
            [("vmnic0", Some("vSwitch0")), ("vmnic1", None)]
        );
        assert!(reachable(Ipv4Addr::new(192, 0, 2, 100)));
        assert!(
            std::fs::read_to_string(host.path("/run/keelson/resolv.conf"))?
                .contains("nameserver 192.0.2.1\n")
        );
        let vm = Uuid::from_u128(7);
        let (name, tap) = host.client()?.open_tap(vm, 0, "VM Network")?;
        assert!(matches!(
            refusal(host.client()?.open_tap(vm, 0, "Nowhere")),
            Refusal::NoSuchPortGroup { .. }
        ));
        // What the network broadcasts reaches the guest.
        let outside = UdpSocket::bind("192.0.2.1:0")?;
        outside.set_broadcast(true)?;
        outside.send_to(b"hello", "192.0.2.255:9")?;
        assert_eq!(poll(&mut [PollFd::new(tap.as_fd(), PollFlags::POLLIN)], PollTimeout::from(5000u16))?, 1);
        let (_, before) = host.get()?;
        let (monitor, seen) = host.spawn("monitor", "ip", &["-o", "monitor", "address", "link", "route"])?;
        let heard = server.count();
        host.kill();
        host.start()?;
        let (_, after) = host.get()?;
        assert_eq!(vmk0(&after).ifindex, vmk0(&before).ifindex);
        assert_eq!(vmk0(&after).addresses, vmk0(&before).addresses);
        assert_eq!(after.taps, before.taps);
        assert_eq!((after.taps[0].name.as_str(), after.taps[0].vm), (name.as_str(), vm));
        let resumed = host
            .wait("the resumed lease", SOON, |s| vmk0(s).dhcp.as_ref().is_some_and(|d| d.server.is_some()))?;
        assert!(
            vmk0(&resumed)
                .dhcp
                .as_ref()
                .and_then(|d| d.lease_left_s)
                .is_some_and(|s| (3000..=3600).contains(&s))
        );
        drop(monitor);
        let changes = std::fs::read_to_string(seen)?;
        // Making and removing the bridge that is asked for its abilities would be seen here too: none is made where one is.
        assert_eq!(changes, "", "the restart changed the network");
        assert_eq!(server.count(), heard, "the restart asked for a lease that it had");
        host.client()?.close_taps(vm)?;
        assert_eq!(host.get()?.1.taps, []);
        Ok(())
    });
}

#[test]
fn a_lease_is_renewed_rebound_lost_and_found_again() {
    lab(|| {
        let mut host = Host::new(1)?;
        let habits = Habits { lease_s: 9, renew_rebind_s: Some((2, 5)), ..Habits::default() };
        let server = DhcpServer::start("lab0", habits)?;
        host.start()?;
        let address = host.wait_address(AddressOrigin::Dhcp, SOON)?.addresses[0];
        let renewed =
            server.wait_heard(0, SOON, |h| h.kind == MessageType::Request && h.ciaddr == address.addr())?;
        assert!(renewed.unicast, "{renewed:?}");
        server.set(|h| h.mood = Mood::DeafToUnicast);
        server.wait_heard(server.count(), SOON, |h| h.ciaddr == address.addr() && !h.unicast)?;
        server.set(|h| h.mood = Mood::Silent);
        host.wait("the end of the lease", Duration::from_secs(20), |s| vmk0(s).addresses.is_empty())?;
        let stopgap = host.wait_address(AddressOrigin::LinkLocal, Duration::from_secs(30))?;
        assert!(stopgap.addresses[0].addr().is_link_local());
        let told = host.wait("word of it", SOON, |s| has_problem(s, "dhcp-unanswered"))?;
        assert!(vmk0(&told).dhcp.as_ref().is_some_and(|d| d.unanswered > 0));
        // A restart of netd does not change the stopgap either.
        host.kill();
        host.start()?;
        assert_eq!(vmk0(&host.get()?.1).addresses, stopgap.addresses);
        server.set(|h| h.mood = Mood::Answers);
        let back = host.wait_address(AddressOrigin::Dhcp, Duration::from_secs(40))?;
        assert_eq!(back.addresses.len(), 1);
        host.wait("no more word of it", SOON, |s| !has_problem(s, "dhcp-unanswered"))?;
        Ok(())
    });
}

#[test]
fn a_refused_request_is_told_and_tried_again() {
    lab(|| {
        let mut host = Host::new(1)?;
        let server = DhcpServer::start("lab0", Habits { mood: Mood::Refuses, ..Habits::default() })?;
        host.start()?;
        let error = |s: &keelson_netcfg_control::NetworkStatus| {
            vmk0(s).dhcp.as_ref().and_then(|d| d.last_error.clone())
        };
        let told = host.wait("the refusal", SOON, |s| error(s).is_some())?;
        assert!(error(&told).is_some_and(|e| e.contains("not from here")));
        server.set(|h| h.mood = Mood::Answers);
        host.wait_address(AddressOrigin::Dhcp, SOON)?;
        Ok(())
    });
}

#[test]
fn an_address_that_somebody_has_is_declined_for_the_next_one() {
    lab(|| {
        let mut host = Host::new(1)?;
        keelson_lab::process::run("ip", &["addr", "add", "192.0.2.100/24", "dev", "lab0"])?;
        let server = DhcpServer::start("lab0", Habits::default())?;
        host.start()?;
        server.wait_heard(0, SOON, |h| h.kind == MessageType::Decline)?;
        assert_eq!(server.declined(), [Ipv4Addr::new(192, 0, 2, 100)]);
        let adapter = host.wait_address(AddressOrigin::Dhcp, Duration::from_secs(25))?;
        assert_eq!(adapter.addresses[0].addr(), Ipv4Addr::new(192, 0, 2, 101));
        Ok(())
    });
}

#[test]
fn a_static_address_is_set_saved_and_restored_and_bad_changes_change_nothing() {
    lab(|| {
        let mut host = Host::new(1)?;
        let mut client = host.start()?;
        let (mut config, status) = client.get()?;
        config.vmkernel_adapters[0].ipv4 =
            Ipv4::Static { address: "192.0.2.20/24".parse()?, gateway: Some(Ipv4Addr::new(192, 0, 2, 1)) };
        config.vmkernel_adapters[0].services.insert(Service::Vmotion);
        config.dns.servers = vec![Ipv4Addr::new(192, 0, 2, 53)];
        client.set(config.clone(), Some(status.revision))?;
        let (_, status) = client.get()?;
        let adapter = vmk0(&status).clone();
        assert_eq!(
            (adapter.origin, adapter.gateway),
            (AddressOrigin::Static, Some(Ipv4Addr::new(192, 0, 2, 1)))
        );
        assert!(adapter.dhcp.is_none());
        assert!(reachable(Ipv4Addr::new(192, 0, 2, 20)));
        assert!(std::fs::read_to_string(host.path("/run/keelson/resolv.conf"))?.contains("192.0.2.53"));
        let (mut now, status) = client.get()?;
        // Wrong, outdated, impossible, failing half-way: each is refused in its own words, and nothing changes.
        let mut wrong = now.clone();
        wrong.port_groups[0].vlan = 4095;
        assert!(
            matches!(refusal(client.set(wrong, None)), Refusal::BadConfig(e) if e.field == "port_groups[0].vlan")
        );
        assert!(matches!(refusal(client.set(now.clone(), Some(status.revision + 1))), Refusal::Stale { .. }));
        let mut tagged = now.clone();
        tagged.port_groups[0].vlan = 20;
        assert!(matches!(refusal(client.set(tagged, None)), Refusal::NotSupported(_)));
        host.inside("mount", &["-o", "bind,ro", "/proc/sys", "/proc/sys"])?;
        let mut more = now.clone();
        more.vswitches.push(VSwitch {
            name: "vSwitch1".into(),
            uplinks: keelson_netcfg_control::Uplinks::Nics(vec![]),
            mtu: 1500,
        });
        let failed = refusal(client.set(more, None));
        assert!(matches!(&failed, Refusal::Failed { what, .. } if what.contains("vSwitch1")), "{failed:?}");
        host.inside("umount", &["/proc/sys"])?;
        assert!(host.inside("ip", &["link", "show", "vSwitch1"]).is_err());
        let (same, after) = client.get()?;
        assert_eq!((&same, after.vmkernel_adapters), (&now, status.vmkernel_adapters));
        // A restart of netd, and what is saved is in force.
        host.kill();
        host.inside("ip", &["addr", "flush", "dev", "vmk0"])?;
        let mut client = host.start()?;
        let (saved, status) = client.get()?;
        assert_eq!(saved, now);
        assert_eq!(vmk0(&status).addresses[0].to_string(), "192.0.2.20/24");
        assert_eq!(saved.with_service(Service::Vmotion).count(), 1);
        // Back to DHCP: the static address goes.
        now.vmkernel_adapters[0].ipv4 = Ipv4::Dhcp;
        let _server = DhcpServer::start("lab0", Habits::default())?;
        client.set(now, None)?;
        assert_eq!(host.wait_address(AddressOrigin::Dhcp, SOON)?.addresses.len(), 1);
        client.restart()?;
        assert_eq!(host.wait_address(AddressOrigin::Dhcp, SOON)?.addresses.len(), 1);
        Ok(())
    });
}

#[test]
fn a_pulled_cable_is_told_and_the_lease_is_confirmed_when_it_is_back() {
    lab(|| {
        let mut host = Host::new(1)?;
        let server = DhcpServer::start("lab0", Habits::default())?;
        host.start()?;
        let address = host.wait_address(AddressOrigin::Dhcp, SOON)?.addresses[0];
        let cable = host.cables[0].clone();
        host.net.set_link(&cable, false)?;
        let told = host.wait("word of the cable", SOON, |s| has_problem(s, "no-link"))?;
        assert_eq!(vmk0(&told).addresses, [address]);
        let heard = server.count();
        host.net.set_link(&cable, true)?;
        let confirmed = server.wait_heard(heard, SOON, |h| h.kind == MessageType::Request)?;
        assert_eq!((confirmed.requested, confirmed.ciaddr), (Some(address.addr()), Ipv4Addr::UNSPECIFIED));
        let back = host.wait("the link", SOON, |s| !has_problem(s, "no-link"))?;
        assert_eq!(vmk0(&back).addresses, [address]);
        assert!(reachable(address.addr()));
        Ok(())
    });
}

#[test]
fn a_host_without_a_nic_says_so_and_goes_on_when_one_appears() {
    lab(|| {
        let mut host = Host::new(0)?;
        let _server = DhcpServer::start("lab0", Habits::default())?;
        host.start()?;
        host.wait("word of it", SOON, |s| has_problem(s, "no-nic"))?;
        host.add_nic()?;
        let adapter = host.wait_address(AddressOrigin::Dhcp, SOON)?;
        assert_eq!(adapter.addresses.len(), 1);
        host.wait("no more word of it", SOON, |s| s.problems.is_empty())?;
        Ok(())
    });
}
