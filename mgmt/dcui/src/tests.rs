//! The console from keys to screen: whole walks, asserted on what a terminal shows.

use std::time::Duration;

use keelson_api::{
    Condition, Cpu, Host, HostPowerAction, Identity, Ipv4Setting, KvmStatus, LogLine, Memory, Service,
};
use keelson_init_control::{Boot, PowerAction, WordError};
use keelson_netcfg_control::{
    AdapterStatus, AddressOrigin, Ipv4, NetworkConfig, NetworkStatus, NicStatus, Problem,
};
use proptest::prelude::*;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::app::{App, Effect, IDLE};
use crate::facts::{Fact, Hardware};
use crate::jobs::{Done, Failure, Job};
use crate::keys::{Decoder, Key};
use crate::{draw, paint};

fn host(password_set: bool) -> Host {
    Host {
        identity: Identity {
            product: "Keelson".into(),
            version: "9.8.7".into(),
            host_id: uuid::Uuid::nil(),
            hostname: "keel1".into(),
            certificate_sha256: ["AB"; 32].join(":"),
            password_set,
        },
        boot_id: "b".into(),
        uptime_s: 5,
        kernel: "6.12.1".into(),
        hardware: None,
        cpu: Cpu { model: "AMD EPYC".into(), sockets: 1, cores: 2, threads: 4 },
        cpu_identity: None,
        cpu_baseline: None,
        memory: Memory { total_bytes: 2 << 30, available_bytes: 1 << 30, reserved_for_vms_bytes: 0 },
        kvm: KvmStatus { available: true, reason: None, max_vcpus: 4 },
        nics: vec![],
        persistent: true,
        vmotion_ready: false,
        vmotion_reason: None,
        conditions: vec![],
        boot_timeline: vec![],
    }
}

fn network(origin: AddressOrigin, address: &str) -> (NetworkConfig, NetworkStatus) {
    let config = NetworkConfig::default();
    let status = NetworkStatus {
        nics: vec![NicStatus {
            name: "vmnic0".into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            driver: "virtio_net".into(),
            pci: None,
            link: true,
            speed_mbps: Some(1000),
            vswitch: None,
        }],
        vmkernel_adapters: vec![AdapterStatus {
            name: "vmk0".into(),
            ifindex: Some(3),
            mac: None,
            addresses: vec![address.parse().unwrap()],
            origin,
            gateway: Some("10.0.2.2".parse().unwrap()),
            dhcp: None,
        }],
        ..NetworkStatus::default()
    };
    (config, status)
}

/// An app of a host that is up, by DHCP.
fn app(password_set: bool) -> App {
    let mut app = App::default();
    app.learn(Fact::Host(Ok(Box::new(host(password_set)))));
    app.learn(Fact::Network(Ok(Box::new(network(AddressOrigin::Dhcp, "10.0.2.15/24")))));
    app.learn(Fact::Boot(Ok(Box::default())));
    app
}

/// What a terminal of this size shows.
fn screen_of(app: &App, columns: u16, rows: u16) -> String {
    let mut buffer = Buffer::empty(Rect::new(0, 0, columns, rows));
    let cursor = draw::draw(app, &mut buffer);
    let mut out = Vec::new();
    paint::paint(None, &buffer, cursor, &mut out);
    let mut parser = vt100::Parser::new(rows.try_into().unwrap(), columns.try_into().unwrap(), 0);
    parser.process(&out);
    parser.screen().contents()
}

fn screen(app: &App) -> String {
    screen_of(app, 80, 24)
}

#[track_caller]
fn shows(app: &App, texts: &[&str]) {
    let screen = screen(app);
    for text in texts {
        assert!(screen.contains(text), "`{text}` is not on\n{screen}");
    }
}

fn keys(app: &mut App, bytes: &[u8]) -> Vec<Effect> {
    let (mut decoder, mut keys) = (Decoder::default(), Vec::new());
    bytes.iter().for_each(|b| decoder.feed(*b, &mut keys));
    decoder.pause(&mut keys);
    keys.into_iter().flat_map(|key| app.key(key)).collect()
}

/// The one job that was asked for.
#[track_caller]
fn job(effects: Vec<Effect>) -> (u64, Job) {
    match <[Effect; 1]>::try_from(effects) {
        Ok([Effect::Do(number, job)]) => (number, job),
        other => panic!("{other:?}"),
    }
}

const F2: &[u8] = b"\x1b[[B";
const F12: &[u8] = b"\x1b[24~";

fn logged_in() -> App {
    let mut app = app(true);
    keys(&mut app, F2);
    let (number, asked) = job(keys(&mut app, b"secret pass\r"));
    assert_eq!(asked, Job::Verify("secret pass".into()));
    app.done(number, Ok(Done::Ok));
    shows(&app, &["System Customization", "Configure Management Network"]);
    app
}

#[test]
fn the_main_screen_tells_who_and_where() {
    let app = app(true);
    shows(
        &app,
        &[
            "Keelson 9.8.7  (Linux 6.12.1)",
            "keel1",
            "AMD EPYC (1 socket, 2 cores, 4 threads)",
            "2.0 GiB of memory",
            "Download tools to manage this host from:",
            "https://10.0.2.15/ (DHCP)",
            &["AB"; 16].join(":"),
        ],
    );
    let text = screen(&app);
    let last = text.lines().last().unwrap().trim_end();
    assert!(
        last.starts_with(" <F2> Customize System/View Logs") && last.ends_with("<F12> Shut Down/Restart"),
        "{last}"
    );
    assert!(!text.contains(" ! "), "{text}");
}

#[test]
fn how_the_address_was_obtained_is_told() {
    let mut app = app(true);
    app.learn(Fact::Network(Ok(Box::new(network(AddressOrigin::Static, "192.0.2.7/24")))));
    shows(&app, &["https://192.0.2.7/ (STATIC)"]);
    app.learn(Fact::Network(Ok(Box::new(network(AddressOrigin::LinkLocal, "169.254.9.9/16")))));
    shows(&app, &["https://169.254.9.9/ (LINK-LOCAL)"]);
}

#[test]
fn conditions_and_silent_daemons_are_told() {
    let mut app = app(false);
    let mut degraded = host(false);
    degraded.conditions = vec![Condition {
        code: "kvm-missing".into(),
        message: "This host cannot run VMs: SVM is switched off.".into(),
        remedy: "Switch it on in the firmware.".into(),
    }];
    app.learn(Fact::Host(Ok(Box::new(degraded))));
    shows(&app, &["No password is set for root", "Press <F2>", "SVM is switched off", "firmware."]);
    app.learn(Fact::Host(Err("Connection refused".into())));
    let mut answer = network(AddressOrigin::None, "10.0.2.15/24");
    answer.1.vmkernel_adapters[0].addresses.clear();
    answer.1.problems = vec![Problem {
        code: "no-link".into(),
        message: "vmnic0 has no link.".into(),
        remedy: "Check the cable.".into(),
    }];
    app.learn(Fact::Network(Ok(Box::new(answer))));
    let boot = Boot {
        word_errors: vec![WordError {
            origin: "kernel command line".into(),
            word: "adress=1".into(),
            problem: "no such word".into(),
        }],
        ..Boot::default()
    };
    app.learn(Fact::Boot(Ok(Box::new(boot))));
    let big = screen_of(&app, 100, 40);
    for text in [
        "The host agent (hostd) does not answer: Connection refused",
        "vmnic0 has no link",
        "adress=1",
        "(no address yet)",
    ] {
        assert!(big.contains(text), "{text}: {big}");
    }
    // 80x24 has no room for what to do, but names each.
    app.learn(Fact::Network(Err("it closed the connection".into())));
    shows(&app, &["hostd", "netd", "vmnic0 has no link", "adress=1"]);
    let wrong = |n| WordError {
        origin: "kernel command line".into(),
        word: format!("w{n}=1"),
        problem: "no such word".into(),
    };
    app.learn(Fact::Boot(Ok(Box::new(Boot { word_errors: (0..9).map(wrong).collect(), ..Boot::default() }))));
    shows(&app, &["more notices"]);
}

#[test]
fn before_any_daemon_answers_there_is_a_screen() {
    let mut app = App::default();
    app.learn(Fact::Hardware(Hardware {
        hostname: "new".into(),
        cpu: "Some CPU".into(),
        threads: 8,
        memory: 64 << 30,
    }));
    shows(&app, &["Keelson", "new", "Some CPU (8 threads)", "64 GiB of memory", "being configured", "<F2>"]);
    keys(&mut app, F2);
    shows(&app, &["has not answered yet"]);
    keys(&mut app, b"\r");
    app.learn(Fact::Host(Err("no such file".into())));
    keys(&mut app, F12);
    shows(&app, &["does not answer: no such file"]);
}

#[test]
fn first_boot_sets_the_password() {
    let mut app = app(false);
    keys(&mut app, F2);
    shows(&app, &["Set Password", "At least 8 characters"]);
    assert_eq!(keys(&mut app, b"short\tshort\r"), []);
    shows(&app, &["fewer than 8 characters"]);
    assert_eq!(keys(&mut app, b"long enough\tlong enouhg\r"), []);
    shows(&app, &["not the same"]);
    let (number, asked) = job(keys(&mut app, b"long enough\tlong enough\r"));
    assert_eq!(asked, Job::SetPassword { current: None, new: "long enough".into() });
    assert!(!screen(&app).contains("long enough"), "{}", screen(&app));
    shows(&app, &["***********", "Please wait"]);
    app.done(number, Ok(Done::Ok));
    shows(&app, &["System Customization"]);
    assert_eq!(app.facts.password_set(), Some(true));
}

#[test]
fn a_wrong_password_is_refused_and_forgotten() {
    let mut app = app(true);
    keys(&mut app, b"\x1b2");
    shows(&app, &["Authentication Required", "root on keel1"]);
    let (number, _) = job(keys(&mut app, b"wrong\r"));
    assert_eq!(keys(&mut app, b"x\r"), [], "one try at a time");
    app.done(number, Err(Failure::WrongPassword));
    shows(&app, &["The password is wrong."]);
    assert!(!screen(&app).contains('*'));
    keys(&mut app, b"\x1b");
    // An answer that comes after Esc opens nothing.
    keys(&mut app, F2);
    let (number, _) = job(keys(&mut app, b"right\r"));
    keys(&mut app, b"\x1b");
    app.done(number, Ok(Done::Ok));
    assert!(app.screens.is_empty());
}

#[test]
fn a_static_address_and_vmotion_are_set_in_one_go() {
    let mut app = logged_in();
    keys(&mut app, b"\x1b[B\r");
    shows(&app, &["Configure Management Network", "IPv4 Configuration", "By DHCP"]);
    // Static; what DHCP gave is there already: replace the address and write the mask as a prefix.
    keys(&mut app, b"\r\x1b[B \x1b[B\x15");
    keys(&mut app, b"192.0.2.10\t\x1524\t\x15192.0.3.1\r");
    shows(&app, &["192.0.3.1 is not within 192.0.2.0/24"]);
    keys(&mut app, b"\x15192.0.2.1\r");
    shows(&app, &["Static", "IPv4 Address:    192.0.2.10", "255.255.255.0", "not applied yet"]);
    // DNS.
    keys(&mut app, b"\x1b[B\r192.0.2.53\t\t\t\x15keel7\r");
    shows(&app, &["Hostname: keel7", "DNS Server: 192.0.2.53"]);
    // vMotion.
    keys(&mut app, b"\x1b[B\r");
    shows(&app, &["[ ] vMotion"]);
    keys(&mut app, b" \r");
    shows(&app, &["vMotion:    Enabled"]);
    keys(&mut app, b"\x1b");
    shows(&app, &["Apply changes and restart management network?", "<Y> Yes   <N> No   <Esc> Cancel"]);
    let (number, asked) = job(keys(&mut app, b"y"));
    let Job::Apply(updates) = asked else { panic!("{asked:?}") };
    assert_eq!(updates.adapter, "vmk0");
    let setting = Ipv4Setting::Static {
        address: "192.0.2.10/24".parse().unwrap(),
        gateway: Some("192.0.2.1".parse().unwrap()),
    };
    assert_eq!(updates.network.ipv4, Some(setting));
    assert_eq!(updates.network.services, Some([Service::Management, Service::Vmotion].into()));
    assert_eq!(updates.network.dns.unwrap().servers, ["192.0.2.53".parse::<std::net::Ipv4Addr>().unwrap()]);
    assert_eq!(updates.host.unwrap().hostname.as_deref(), Some("keel7"));
    shows(&app, &["Applying the changes"]);
    app.done(number, Ok(Done::Ok));
    shows(&app, &["System Customization"]);
    assert!(app.changes.is_empty());
}

#[test]
fn unchanged_forms_are_no_changes() {
    let mut app = logged_in();
    keys(&mut app, b"\x1b[B\r\r\r");
    keys(&mut app, b"\x1b[B\r\r\x1b[B\r\r");
    assert!(app.changes.is_empty(), "{:?}", app.changes);
    keys(&mut app, b"\x1b");
    shows(&app, &["System Customization"]);
}

#[test]
fn changes_can_be_kept_thrown_away_and_refused() {
    let mut app = logged_in();
    keys(&mut app, b"\x1b[B\r\x1b[B\x1b[B\r \r\x1b");
    shows(&app, &["Apply changes"]);
    keys(&mut app, b"\x1b");
    shows(&app, &["VMkernel Services", "not applied yet"]);
    keys(&mut app, b"\x1b");
    let (number, _) = job(keys(&mut app, b"Y"));
    app.done(number, Err(Failure::Other("vmk0: netd did not answer.".into())));
    shows(&app, &["vmk0: netd did not answer."]);
    keys(&mut app, b"\r");
    assert_eq!(app.changes.vmotion, Some(true), "still there to try again");
    keys(&mut app, b"\x1bn");
    shows(&app, &["System Customization"]);
    assert!(app.changes.is_empty());
}

#[test]
fn a_static_host_is_shown_as_such() {
    let mut app = logged_in();
    let (mut config, status) = network(AddressOrigin::Static, "192.0.2.7/25");
    config.vmkernel_adapters[0].ipv4 =
        Ipv4::Static { address: "192.0.2.7/25".parse().unwrap(), gateway: None };
    app.learn(Fact::Network(Ok(Box::new((config, status)))));
    keys(&mut app, b"\x1b[B\r\r");
    shows(&app, &["(o) Set a static address:", "192.0.2.7", "255.255.255.128"]);
}

#[test]
fn restarting_the_network_is_asked_first() {
    let mut app = logged_in();
    keys(&mut app, b"\x1b[B\x1b[B\r");
    shows(&app, &["Restart Management Network: Confirm"]);
    keys(&mut app, b"n");
    keys(&mut app, b"\r");
    let (number, asked) = job(keys(&mut app, b"y"));
    assert_eq!(asked, Job::RestartNetwork);
    // It may go on unwatched, and still be heard when it fails.
    keys(&mut app, b"\x1b");
    app.done(number, Err(Failure::Other("it broke.".into())));
    shows(&app, &["it broke."]);
}

#[test]
fn the_host_is_shut_down_or_restarted() {
    for (key, action) in [(F2, HostPowerAction::PowerOff), (b"\x1b[23~".as_slice(), HostPowerAction::Reboot)]
    {
        let mut app = app(true);
        keys(&mut app, F12);
        let (number, _) = job(keys(&mut app, b"password\r"));
        app.done(number, Ok(Done::Ok));
        shows(&app, &["<F2> Shut Down   <F11> Restart   <Esc> Cancel"]);
        let (number, asked) = job(keys(&mut app, key));
        assert_eq!(asked, Job::Power(action));
        app.done(number, Ok(Done::Ok));
        app.learn(Fact::GoingDown(if action == HostPowerAction::Reboot {
            PowerAction::Reboot
        } else {
            PowerAction::PowerOff
        }));
        shows(&app, &["This host is "]);
        assert_eq!(keys(&mut app, F2), []);
        assert!(app.screens.is_empty());
    }
    // Without a password there is none to ask for.
    let mut app = app(false);
    keys(&mut app, F12);
    shows(&app, &["<F11> Restart"]);
    keys(&mut app, b"\x1b");
    assert!(app.screens.is_empty());
}

#[test]
fn ten_idle_minutes_log_out() {
    let mut app = logged_in();
    app.tick(Duration::from_secs(100));
    keys(&mut app, b"\x1b[B");
    app.tick(Duration::from_secs(100) + IDLE - Duration::from_secs(1));
    shows(&app, &["System Customization"]);
    app.tick(Duration::from_secs(100) + IDLE);
    shows(&app, &["Download tools"]);
}

#[test]
fn logs_are_read_and_go_on() {
    let mut app = logged_in();
    keys(&mut app, b"\x1b[F");
    let (number, asked) = job(keys(&mut app, b"\r"));
    assert_eq!(asked, Job::Logs(0));
    let line = |seq: u64, text: &str| LogLine {
        seq,
        time: jiff::Timestamp::UNIX_EPOCH,
        source: "netd".into(),
        level: "info".into(),
        text: text.into(),
    };
    app.done(number, Ok(Done::Lines((1..=50).map(|n| line(n, &format!("line {n}\x1b[2J"))).collect())));
    shows(&app, &["00:00:00 netd: line 50", "line 30"]);
    assert!(!screen(&app).contains("line 10"));
    let (number, asked) = job(app.tick(Duration::from_secs(9)));
    assert_eq!(asked, Job::Logs(51));
    keys(&mut app, b"\x1b[5~\x1b[5~\x1b[5~\x1b[5~");
    shows(&app, &["line 1[2J", "line 20"]);
    app.done(number, Ok(Done::Lines(vec![line(51, "newest")])));
    shows(&app, &["line 1[2J"]);
    keys(&mut app, b"\x1b[F");
    shows(&app, &["newest"]);
    keys(&mut app, b"\x1b");
    shows(&app, &["System Customization"]);
}

#[test]
fn the_old_password_is_asked_for() {
    let mut app = logged_in();
    keys(&mut app, b"\r");
    let (number, asked) = job(keys(&mut app, b"old password\tnew password\tnew password\r"));
    assert_eq!(asked, Job::SetPassword { current: Some("old password".into()), new: "new password".into() });
    app.done(number, Err(Failure::WrongPassword));
    shows(&app, &["The password is wrong."]);
    let (number, _) = job(keys(&mut app, b"old password\tnew password\tnew password\r"));
    app.done(number, Ok(Done::Ok));
    shows(&app, &["The password was changed."]);
}

fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        Just(Key::Enter),
        Just(Key::Esc),
        Just(Key::Up),
        Just(Key::Down),
        Just(Key::Tab),
        Just(Key::BackTab),
        Just(Key::Backspace),
        Just(Key::PageUp),
        Just(Key::End),
        Just(Key::Home),
        Just(Key::F(2)),
        Just(Key::F(11)),
        Just(Key::F(12)),
        Just(Key::Ctrl('u')),
        Just(Key::Char(' ')),
        Just(Key::Char('y')),
        Just(Key::Char('n')),
        any::<char>().prop_map(Key::Char),
    ]
}

proptest! {
    /// Whatever is typed, on whatever size of terminal, with jobs that succeed and fail: there is a screen, and no password on it.
    #[test]
    fn any_keys_are_survived(pressed in prop::collection::vec((any_key(), any::<bool>()), 0..60), columns in 20u16..140, rows in 5u16..60, set: bool) {
        let mut app = app(set);
        for (key, succeeds) in pressed {
            for effect in app.key(key) {
                if let Effect::Do(number, _) = effect {
                    app.done(number, if succeeds { Ok(Done::Ok) } else { Err(Failure::Other("no".into())) });
                }
            }
            let mut buffer = Buffer::empty(Rect::new(0, 0, columns, rows));
            if let Some(cursor) = draw::draw(&app, &mut buffer) {
                prop_assert!(cursor.x <= columns + 80);
            }
        }
    }

    #[test]
    fn wrapped_text_fits_and_is_whole(text in "[ -~]{0,300}", width in 1usize..100) {
        let lines = draw::wrap(&text, width);
        prop_assert!(lines.iter().all(|l| l.chars().count() <= width));
        let squeeze = |t: &str| t.split_whitespace().collect::<String>();
        prop_assert_eq!(squeeze(&lines.join(" ")), squeeze(&text));
    }
}
