//! Light hosts with stand-ins for their units: starting, restarting, stopping, descriptors, logs and going down.
#![allow(missing_docs, unreachable_pub, clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::{Builder, permitted};
use keelson_init_control::{Error, Exit, PowerAction, Refusal, Request, Tty, UnitId, UnitState, VmLimits};

fn vm(n: u128) -> (UnitId, uuid::Uuid) {
    let id = uuid::Uuid::from_u128(n);
    (UnitId::Vm(id), id)
}

fn script(text: &str) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn start_vm(
    client: &mut keelson_init_control::Client,
    id: uuid::Uuid,
    text: &str,
    keep: &[&str],
) -> Result<(), Error> {
    let file = script(text);
    let keep = keep.iter().map(|s| (*s).to_owned()).collect();
    let request = Request::StartVm { id, fds: vec!["script".into()], keep, limits: VmLimits::default() };
    client.tell_with_fds(&request, &[file.as_fd()]).map(drop)
}

fn refusal(result: Result<impl std::fmt::Debug, Error>) -> Refusal {
    match result {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("no refusal: {other:?}"),
    }
}

#[test]
fn it_starts_its_daemons_with_their_rights_and_tells_how_it_went() {
    if !permitted() {
        return;
    }
    let began = Instant::now();
    let host = Builder::new()
        .file("scripts/netd", "report")
        .file("scripts/hostd", "report\nlog <3>hostd: something broke")
        .file("dev/ttyS0", "no terminal")
        .file("esp/keelson.conf", "hostname = from-file\nvlan = 20\ncolour = blue\n")
        .start(&["hostname=from-line", "address=dhcp", "vlan=9999"]);
    for unit in [UnitId::Netd, UnitId::Hostd] {
        host.wait(unit, |s| s.state == UnitState::Running);
    }
    eprintln!("netd and hostd of a light host run {} ms after its start", began.elapsed().as_millis());
    let netd = host.wait_log("netd", "report");
    assert!(
        netd.contains("uid=0 ") && netd.contains("caps=0000000000003401 bound=0000000000003401 nnp=1"),
        "{netd}"
    );
    let hostd = host.wait_log("hostd", "report");
    assert!(
        hostd.contains("uid=900 ") && hostd.contains("caps=0000000000000000 bound=0000000000000000 nnp=1"),
        "{hostd}"
    );

    let mut client = host.client();
    let line =
        client.logs(0, 100, Some("hostd".into())).unwrap().into_iter().find(|l| l.priority == 3).unwrap();
    assert_eq!(line.text, "hostd: something broke");
    let boot = client.boot().unwrap();
    assert!(boot.light);
    assert_eq!(boot.words.hostname.as_deref(), Some("from-line"));
    assert_eq!(boot.words.vlan, Some(20));
    let words: Vec<&str> = boot.word_errors.iter().map(|e| e.word.as_str()).collect();
    assert_eq!(words, ["vlan=9999", "colour = blue"]);
    assert_eq!(boot.consoles, [Tty::TtyS0]);
    assert_eq!(boot.state.unwrap().device, "/state");
    let steps: Vec<&str> = boot.timeline.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(steps, ["mounts", "machines", "state", "units"]);
    // /proc would show the reader's own UTS namespace, so the name is asked inside.
    let uts = std::process::Command::new("nsenter")
        .args(["--target", &host.init_pid().to_string(), "--uts", "uname", "-n"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&uts.stdout).trim(), "from-line");
    // A file is no terminal: the unit says why it does not run, and the rest goes on.
    let dcui = host.wait(UnitId::Dcui(Tty::TtyS0), |s| !s.exits.is_empty());
    assert!(matches!(dcui.exits[0].exit, Exit::NotStarted(_)), "{dcui:?}");
}

#[test]
fn a_daemon_that_dies_comes_back_later_each_time_and_its_ends_are_kept() {
    if !permitted() {
        return;
    }
    let host = Builder::new().file("scripts/hostd", "work 5\nexit 7").start(&[]);
    let status = host.wait(UnitId::Hostd, |s| s.exits.len() >= 3);
    assert!(status.exits.iter().all(|e| e.exit == Exit::Code(7)), "{status:?}");
    let gaps: Vec<u64> = status.exits.windows(2).map(|w| w[1].time_ms - w[0].time_ms - w[1].ran_ms).collect();
    // Never sooner; how much later is this machine's business.
    assert!(gaps[0] >= 95 && gaps[1] >= 195, "{gaps:?}");

    fs::write(host.root().join("scripts/hostd"), "log well now").unwrap();
    let status = host.wait(UnitId::Hostd, |s| s.state == UnitState::Running && s.restarts >= 3);
    let old = status.pid;
    host.wait_log("hostd", "well now");
    fs::write(host.root().join("scripts/hostd"), "log well again").unwrap();
    host.client().tell(&Request::Kill { unit: UnitId::Hostd }).unwrap();
    let status = host.wait(UnitId::Hostd, |s| s.state == UnitState::Running && s.pid != old);
    assert_eq!(status.exits.last().unwrap().exit, Exit::Signal(9));
    // It runs before it heeds SIGTERM.
    host.wait_log("hostd", "well again");
    let old = status.pid;
    host.client().tell(&Request::Restart { unit: UnitId::Hostd }).unwrap();
    let status = host.wait(UnitId::Hostd, |s| s.state == UnitState::Running && s.pid != old);
    assert_eq!(status.exits.last().unwrap().exit, Exit::Code(0));
}

#[test]
fn a_missing_program_is_an_exit_record_and_nothing_else_suffers() {
    if !permitted() {
        return;
    }
    let host = Builder::new().without("bin/hostd").start(&[]);
    let status = host.wait(UnitId::Hostd, |s| s.exits.len() >= 2);
    assert_eq!(status.exits[0].exit, Exit::NotStarted(2));
    host.wait(UnitId::Netd, |s| s.state == UnitState::Running);
}

#[test]
fn a_stopped_daemon_stays_stopped_until_it_is_restarted() {
    if !permitted() {
        return;
    }
    let host = Builder::new().file("scripts/netd", "log deaf\ndeaf").start(&[]);
    host.wait_log("netd", "deaf");
    let mut client = host.client();
    let began = Instant::now();
    client.tell(&Request::Stop { unit: UnitId::Netd, deadline_ms: 300 }).unwrap();
    let status = host.wait(UnitId::Netd, |s| s.state == UnitState::Ended);
    assert_eq!(status.exits[0].exit, Exit::Signal(9));
    assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
    client.tell(&Request::Restart { unit: UnitId::Netd }).unwrap();
    host.wait(UnitId::Netd, |s| s.state == UnitState::Running);
}

#[test]
fn a_machine_runs_alone_with_its_descriptors_and_its_memory_outlives_it() {
    if !permitted() {
        return;
    }
    let host = Builder::new().start(&[]);
    let mut client = host.client();
    let (unit, id) = vm(7);
    let mut memory = tempfile::tempfile().unwrap();
    memory.write_all(&[42; 4096]).unwrap();
    let file = script("report\nanswer\nexit 5");
    let request = Request::StartVm {
        id,
        fds: vec!["script".into(), "memory".into()],
        keep: vec!["memory".into()],
        limits: VmLimits { memory_bytes: Some(1 << 30), threads: Some(100), ..VmLimits::default() },
    };
    let began = Instant::now();
    client.tell_with_fds(&request, &[file.as_fd(), memory.as_fd()]).unwrap();
    eprintln!("a VM's process was started in {} us", began.elapsed().as_micros());
    let report = host.wait_log(&unit.to_string(), "report");
    assert!(report.contains("uid=100000 pid=1 fds=console,control,memory files=0"), "{report}");
    assert!(matches!(refusal(client.tell(&Request::Forget { unit })), Refusal::Running(_)));

    let control = host.path(&format!("/run/keelson/vm/{id}/control.sock"));
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&control).unwrap());
    assert_eq!(owner, 900);
    let mut stream = std::os::unix::net::UnixStream::connect(&control).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "here\n");

    let status = host.wait(unit, |s| s.state == UnitState::Ended);
    assert_eq!(status.exits[0].exit, Exit::Code(5));
    assert_eq!(
        client.kept().unwrap().iter().map(|k| (k.unit, k.name.as_str())).collect::<Vec<_>>(),
        [(unit, "memory")]
    );
    let fetched = client.tell_with_fds(&Request::Fetch { unit, name: "memory".into() }, &[]).unwrap();
    let mut kept = fs::File::from(fetched.into_iter().next().unwrap());
    kept.rewind().unwrap();
    let mut byte = [0; 1];
    kept.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [42]);

    assert!(matches!(refusal(client.tell(&Request::Forget { unit })), Refusal::NotForThisUnit { .. }));
    client.tell(&Request::Release { unit, name: "memory".into() }).unwrap();
    client.tell(&Request::Forget { unit }).unwrap();
    assert!(!control.exists());
    assert!(client.units().unwrap().iter().all(|s| s.id != unit));
    assert!(matches!(refusal(client.tell(&Request::Kill { unit })), Refusal::NoSuchUnit(_)));
}

#[test]
fn machines_have_users_of_their_own_and_end_by_button_or_by_force() {
    if !permitted() {
        return;
    }
    let host = Builder::new().start(&[]);
    let mut client = host.client();
    let ((one, one_id), (two, two_id)) = (vm(1), vm(2));
    start_vm(&mut client, one_id, "report\nlog ready", &[]).unwrap();
    start_vm(&mut client, two_id, "report\nlog deaf\ndeaf", &[]).unwrap();
    assert!(host.wait_log(&one.to_string(), "report").contains("uid=100000 "));
    assert!(host.wait_log(&two.to_string(), "report").contains("uid=100001 "));
    assert!(matches!(refusal(start_vm(&mut client, one_id, "", &[])), Refusal::Running(_)));
    assert!(matches!(refusal(client.tell(&Request::Restart { unit: one })), Refusal::NotForThisUnit { .. }));
    host.wait_log(&one.to_string(), "ready");
    host.wait_log(&two.to_string(), "deaf");
    for unit in [one, two] {
        client.tell(&Request::Stop { unit, deadline_ms: if unit == one { 10_000 } else { 200 } }).unwrap();
    }
    assert_eq!(host.wait(one, |s| s.state == UnitState::Ended).exits[0].exit, Exit::Code(0));
    assert_eq!(host.wait(two, |s| s.state == UnitState::Ended).exits[0].exit, Exit::Signal(9));
    // An ended machine can be started again, under a name that is free now.
    start_vm(&mut client, one_id, "report\nlog again", &[]).unwrap();
    host.wait_log(&one.to_string(), "again");
    client.tell(&Request::Kill { unit: one }).unwrap();
    assert_eq!(host.wait(one, |s| s.state == UnitState::Ended).exits.last().unwrap().exit, Exit::Signal(9));
}

#[test]
fn wrong_parameters_are_named_and_leave_nothing_behind() {
    if !permitted() {
        return;
    }
    let host = Builder::new().without("bin/keelson-vmm").start(&[]);
    let mut client = host.client();
    let (unit, id) = vm(3);
    let bad = Request::StartVm { id, fds: vec!["a".into()], keep: vec![], limits: VmLimits::default() };
    assert!(matches!(refusal(client.tell(&bad)), Refusal::BadParameter { field, .. } if field == "fds"));
    let failed = refusal(start_vm(&mut client, id, "", &["script"]));
    assert!(matches!(&failed, Refusal::Failed { why, .. } if why.contains("No such file")), "{failed:?}");
    assert!(client.kept().unwrap().is_empty());
    assert!(client.units().unwrap().iter().all(|s| s.id != unit));
    assert!(!host.path(&format!("/run/keelson/vm/{id}")).exists());
    let name = Request::SetHostname { name: "-x-".into() };
    assert!(matches!(refusal(client.tell(&name)), Refusal::BadParameter { .. }));
}

#[test]
fn what_lost_its_parent_is_reaped_and_a_flood_of_lines_stays_bounded() {
    if !permitted() {
        return;
    }
    let flood: String = (0..30_000).map(|n| format!("log line {n} {}\n", "x".repeat(200))).collect();
    let host = Builder::new()
        .file("scripts/netd", &format!("{flood}log flooded"))
        .file("scripts/hostd", "orphan\nwork 50\nexit 0")
        .start(&[]);
    host.wait_log("netd", "flooded");
    host.wait(UnitId::Hostd, |s| s.exits.len() >= 2);
    let lines = host.client().logs(0, u32::MAX, None).unwrap();
    assert!(lines[0].seq > 1, "the ring never overflowed");
    // No process of the host is a zombie, once its init has had a moment.
    let began = Instant::now();
    while zombies(host.init_pid()) > 0 {
        assert!(began.elapsed() < common::PATIENCE, "zombies are left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn zombies(init: i32) -> usize {
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
    let state = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    children.split_whitespace().filter(|pid| state(pid).contains(") Z ")).count()
}

#[test]
fn it_goes_down_in_order_and_a_restart_has_its_own_code() {
    if !permitted() {
        return;
    }
    let host = Builder::new().start(&[]);
    let mut client = host.client();
    let (_, id) = vm(4);
    start_vm(&mut client, id, "log up\nwork 100", &[]).unwrap();
    host.wait_log(&vm(4).0.to_string(), "up");
    let mut events = host.client().watch().unwrap();
    client.tell(&Request::Power { action: PowerAction::Reboot, guest_deadline_ms: 5_000 }).unwrap();
    assert!(events.any(|e| matches!(e, Ok(keelson_init_control::Event::PoweringDown(PowerAction::Reboot)))));
    assert!(matches!(refusal(start_vm(&mut client, uuid::Uuid::from_u128(9), "", &[])), Refusal::GoingDown));
    let (status, text) = host.end();
    assert_eq!(status.code(), Some(3), "{text}");
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no `{what}` in {text}"));
    assert!(at("unit vm/") < at("unit hostd (process"), "{text}");
    assert!(at("unit hostd (process") < at("unit netd (process"), "{text}");
}

#[test]
fn a_signal_ends_a_host_in_order_and_without_state_it_says_so() {
    if !permitted() {
        return;
    }
    let host = Builder::new().without("state").start(&[]);
    let boot = host.client().boot().unwrap();
    assert_eq!(boot.problems.iter().map(|p| p.code.as_str()).collect::<Vec<_>>(), ["state-missing"]);
    assert!(boot.state.is_none());
    host.wait(UnitId::Hostd, |s| s.state == UnitState::Running);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(host.init_pid()), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    let (status, text) = host.end();
    assert_eq!(status.code(), Some(0), "{text}");
}
