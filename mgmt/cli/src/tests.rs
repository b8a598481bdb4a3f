//! The command line, and whole commands against a small server on a local socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use clap::{CommandFactory, Parser};
use keelson_api::client::ClientError;
use keelson_api::{Fault, Ipv4Setting, Problem};

use crate::cli::{Cli, Command, VmCommand, mebibytes};
use crate::failure::Failure;
use crate::hosts::{Hosts, Known};
use crate::place::{Place, disk, nic};
use crate::{network, output, run, vm};

fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once(&"keelctl").chain(line))
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn a_vm_is_described() {
    let cli = parse(&[
        "vm",
        "create",
        "web1",
        "--vcpus",
        "2",
        "--memory",
        "1G",
        "--kernel",
        "datastore1:vmlinuz",
        "--initramfs",
        "[datastore1] initrd.img",
        "--disk",
        "new=4G",
        "--disk",
        "datastore1:a b.raw,ro",
        "--nic",
        "VM Network",
        "--nic",
        "Lab,mac=02:00:00:00:00:01",
    ])
    .unwrap();
    let Command::Vm { command: VmCommand::Create(create) } = &cli.command else { panic!("{cli:?}") };
    let spec = vm::spec(create).unwrap();
    let expected = serde_json::json!({
        "name": "web1", "vcpus": 2, "memory_mib": 1024, "kernel": "[datastore1] vmlinuz", "initramfs": "[datastore1] initrd.img", "cmdline": "console=ttyS0",
        "disks": [{"size_mib": 4096, "read_only": false}, {"path": "[datastore1] a b.raw", "read_only": true}],
        "nics": [{"port_group": "VM Network"}, {"port_group": "Lab", "mac": "02:00:00:00:00:01"}],
    });
    assert_eq!(serde_json::to_value(spec).unwrap(), expected);
}

#[test]
fn wrong_lines_are_refused() {
    for wrong in [
        &["vm", "create", "x"][..],
        &["vm", "create", "--kernel", "d:k"],
        &["vm", "create", "x", "--kernel", ":k"],
        &["vm", "create", "x", "--kernel", "d:k", "--memory", "lots"],
        &["network", "set-services", "vmk0", "storage"],
        &["network", "set-services", "vmk0"],
        &["task", "show", "7"],
        &["host", "power", "sideways"],
        &["vm", "set", "x", "--cpu-shares", "many"],
        &["vm", "create", "--file", "x.json", "--cpu", "host"],
        &["--fingerprint", "AA:BB", "host"],
        &["--socket", "/x", "host"],
        &[],
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn sizes_and_places_are_read() {
    for (text, mib) in [("512M", 512), ("2G", 2048), ("2GiB", 2048), ("2048", 2048), ("1t", 1024 * 1024)] {
        assert_eq!(mebibytes(text), Ok(mib), "{text}");
    }
    for wrong in ["", "M", "-1", "1.5G", "99999999999999999999", "18446744073709551615G"] {
        assert!(mebibytes(wrong).is_err(), "{wrong}");
    }
    let place = |text: &str| text.parse::<Place>().map(|p| (p.datastore, p.path));
    assert_eq!(place("[data store] a/b"), Ok(("data store".into(), "a/b".into())));
    assert_eq!(place("d:a/b"), Ok(("d".into(), "a/b".into())));
    assert_eq!(place("d"), Ok(("d".into(), String::new())));
    assert!(place("[d a").is_err() && place("").is_err() && place("[] x").is_err());
    assert!(disk("d:").is_err() && disk("new=x").is_err() && nic("").is_err() && nic(",mac=x").is_err());
}

#[test]
fn addresses_are_read() {
    assert_eq!(network::setting("dhcp", None).unwrap(), Ipv4Setting::Dhcp);
    let set = network::setting("192.0.2.7/24", Some("192.0.2.1".parse().unwrap())).unwrap();
    assert!(matches!(set, Ipv4Setting::Static { gateway: Some(_), .. }));
    assert_eq!(network::setting("dhcp", Some("192.0.2.1".parse().unwrap())).unwrap_err().code(), 2);
    assert_eq!(network::setting("192.0.2.7", None).unwrap_err().code(), 2);
}

#[test]
fn failures_have_codes_and_say_what_to_do() {
    let problem = |fault| {
        Failure::Client(ClientError::Problem(Box::new(
            Problem::new(fault, "the detail").field("vcpus").remedy("do this"),
        )))
    };
    for (fault, code) in [
        (Fault::NotFound, 3),
        (Fault::NotAuthenticated, 4),
        (Fault::PasswordNotSet, 4),
        (Fault::InvalidArgument, 1),
        (Fault::NoDiskSpace, 1),
    ] {
        assert_eq!(problem(fault).code(), code, "{fault:?}");
    }
    let text = problem(Fault::InvalidArgument).text();
    for part in
        ["A value is not possible", "the detail", "field:   vcpus", "to do:   do this", "InvalidArgument"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let print = "AA".repeat(32).parse().unwrap();
    let other = "BB".repeat(32).parse().unwrap();
    assert_eq!(
        Failure::Client(ClientError::FingerprintMismatch { host: "h".into(), expected: print, found: other })
            .code(),
        6
    );
}

#[test]
fn hosts_are_remembered_by_their_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keelson").join("hosts.toml");
    assert_eq!(Hosts::read(&path).unwrap(), Hosts::default());
    let mut hosts = Hosts { default: Some("h:8443".into()), ..Hosts::default() };
    hosts.hosts.insert(
        "h:8443".into(),
        Known { fingerprint: "AA".repeat(32), username: "root".into(), token: Some("t".into()) },
    );
    hosts.write(&path).unwrap();
    assert_eq!(Hosts::read(&path).unwrap(), hosts);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    std::fs::write(&path, "hosts = 7").unwrap();
    assert!(Hosts::read(&path).unwrap_err().text().contains("damaged"));
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    assert_eq!(output::clean("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\nc");
    let table = output::table(&["name"], std::iter::once(vec!["x\x1b]0;t\x07".to_owned()]));
    assert!(!table.contains('\x1b'), "{table:?}");
}

/// A server that answers requests, told by their method and path, and tells what it was asked.
fn serve(
    answers: Vec<(&'static str, &'static str, String)>,
) -> (tempfile::TempDir, PathBuf, Receiver<(String, String)>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (tell, told) = channel();
    let answers = std::sync::Arc::new(answers);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, tell, answers) = (stream.unwrap(), tell.clone(), answers.clone());
            thread::spawn(move || {
                loop {
                    let mut reader = BufReader::with_capacity(1, &mut stream);
                    let (mut line, mut length, mut chunked) = (String::new(), 0, false);
                    if reader.read_line(&mut line).unwrap_or(0) == 0 {
                        return;
                    }
                    loop {
                        let mut field = String::new();
                        reader.read_line(&mut field).unwrap();
                        if field == "\r\n" {
                            break;
                        }
                        if let Some(n) = field.to_lowercase().strip_prefix("content-length:") {
                            length = n.trim().parse().unwrap();
                        }
                        chunked |= field.to_lowercase().starts_with("transfer-encoding: chunked");
                    }
                    if chunked {
                        // A request without a body has one without chunks.
                        let mut end = [0; 5];
                        reader.read_exact(&mut end).unwrap();
                        assert_eq!(end, *b"0\r\n\r\n");
                    }
                    let mut body = vec![0; length];
                    reader.read_exact(&mut body).unwrap();
                    let asked = line.trim_end().trim_end_matches(" HTTP/1.1").replace("/api/v1", "");
                    let (status, answer) = answers.iter().find(|(what, ..)| *what == asked).map_or(
                        (
                            "404 Not Found",
                            serde_json::to_string(&Problem::new(Fault::NotFound, format!("no {asked}")))
                                .unwrap(),
                        ),
                        |(_, s, a)| (*s, a.clone()),
                    );
                    let _ = tell.send((asked, String::from_utf8(body).unwrap()));
                    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())
                        .unwrap();
                }
            });
        }
    });
    (dir, path, told)
}

const ID: &str = "11111111-2222-4333-8444-555555555555";

fn a_vm() -> String {
    format!(
        r#"{{"id":"{ID}","name":"web1","directory":"[d] web1","hardware_version":1,"vcpus":1,"memory_mib":64,"cpu":{{"definition":"x86-64-v2","shares":500}},"kernel":"[d] k","cmdline":"","disks":[],"nics":[],"power_state":"powered_on"}}"#
    )
}

fn a_task(state: &str) -> String {
    let error = if state == "error" {
        format!(
            r#","error":{}"#,
            serde_json::to_string(&Problem::new(Fault::NotSupported, "no KVM here").remedy("switch SVM on"))
                .unwrap()
        )
    } else {
        String::new()
    };
    format!(
        r#"{{"id":"{ID}","name":"Power On Virtual Machine","target":"web1","state":"{state}","progress":5,"message":"m","cancelable":false,"who":"root","started":"2026-01-01T00:00:00Z"{error}}}"#
    )
}

fn on_local(socket: &std::path::Path, line: &[&str]) -> Result<(), Failure> {
    let socket = socket.to_str().unwrap();
    let mut whole = vec!["--local", "--socket", socket];
    whole.extend(line);
    run(&parse(&whole).unwrap())
}

#[test]
fn a_vm_is_found_by_name_and_started_to_the_end() {
    let power = "POST /vms/11111111-2222-4333-8444-555555555555/power";
    let wait = "GET /tasks/11111111-2222-4333-8444-555555555555?wait=25";
    let (_dir, socket, told) = serve(vec![
        ("GET /vms", "200 OK", format!("[{}]", a_vm())),
        (power, "202 Accepted", a_task("running")),
        (wait, "200 OK", a_task("success")),
    ]);
    on_local(&socket, &["vm", "start", "web1"]).unwrap();
    let asked: Vec<(String, String)> = told.try_iter().collect();
    assert_eq!(asked[1], (power.into(), r#"{"action":"on"}"#.into()));
    assert_eq!(asked[2].0, wait);

    on_local(&socket, &["vm", "stop", ID, "--force", "--no-wait"]).unwrap();
    assert_eq!(told.try_iter().last().unwrap().1, r#"{"action":"off"}"#);

    let missing = on_local(&socket, &["vm", "show", "web2"]).unwrap_err();
    assert_eq!(missing.code(), 3);
    assert!(missing.text().contains("web2") && missing.text().contains("web1"), "{}", missing.text());
}

#[test]
fn a_failed_task_is_a_failure_with_its_reason() {
    let (_dir, socket, _told) = serve(vec![
        ("GET /vms", "200 OK", format!("[{}]", a_vm())),
        ("POST /vms/11111111-2222-4333-8444-555555555555/power", "202 Accepted", a_task("error")),
    ]);
    let failure = on_local(&socket, &["-o", "json", "vm", "reset", "web1"]).unwrap_err();
    assert_eq!(failure.code(), 1);
    for part in ["Power On Virtual Machine of web1 failed", "no KVM here", "switch SVM on"] {
        assert!(failure.text().contains(part), "{}", failure.text());
    }
}

#[test]
fn of_a_vm_only_what_is_given_is_changed() {
    let change = "PATCH /vms/11111111-2222-4333-8444-555555555555";
    let (_dir, socket, told) =
        serve(vec![("GET /vms", "200 OK", format!("[{}]", a_vm())), (change, "200 OK", a_vm())]);
    for (line, body) in [
        (&["--vcpus", "2", "--memory", "1G"][..], r#"{"vcpus":2,"memory_mib":1024}"#),
        (&["--kernel", "d:k2", "--no-initramfs"], r#"{"kernel":"[d] k2","initramfs":""}"#),
        (
            &["--cpu", "amd-zen2", "--cpu-mask", "avx2,rdrand"],
            r#"{"cpu":{"definition":"amd-zen2","masks":["avx2","rdrand"],"shares":500}}"#,
        ),
        (
            &["--cpu-shares", "none", "--cpu-limit", "150"],
            r#"{"cpu":{"definition":"x86-64-v2","limit_percent":150}}"#,
        ),
        (
            &["--cpu-affinity", "0", "--cpu-affinity", "1-2", "--cpu-reservation", "50"],
            r#"{"cpu":{"definition":"x86-64-v2","affinity":["0","1-2"],"shares":500,"reservation_percent":50}}"#,
        ),
        (&["--cmdline", "", "--initramfs", "[d] i"], r#"{"initramfs":"[d] i","cmdline":""}"#),
        (&["--no-nics"], r#"{"nics":[]}"#),
        (&["--nic", "VM Network"], r#"{"nics":[{"port_group":"VM Network"}]}"#),
    ] {
        let whole: Vec<&str> = ["vm", "set", "web1"].into_iter().chain(line.iter().copied()).collect();
        on_local(&socket, &whole).unwrap();
        assert_eq!(told.try_iter().last().unwrap(), (change.into(), body.into()), "{line:?}");
    }
    // Nothing to change, and both of what excludes each other, are mistakes.
    for line in [&["vm", "set", "web1"][..], &["vm", "set", "web1", "--no-nics", "--nic", "a"]] {
        assert!(parse(line).is_err(), "{line:?}");
    }
}

#[test]
fn an_agent_is_restarted_and_only_the_host_agent_is_not_waited_for() {
    let wait = "GET /tasks/11111111-2222-4333-8444-555555555555?wait=25";
    let (_dir, socket, told) = serve(vec![
        ("POST /agents/netd/restart", "202 Accepted", a_task("running")),
        ("POST /agents/hostd/restart", "202 Accepted", a_task("running")),
        (wait, "200 OK", a_task("success")),
    ]);
    on_local(&socket, &["host", "restart-agent", "netd"]).unwrap();
    let asked: Vec<String> = told.try_iter().map(|(what, _)| what).collect();
    assert_eq!(asked, ["POST /agents/netd/restart", wait]);
    on_local(&socket, &["host", "restart-agent", "hostd"]).unwrap();
    let asked: Vec<String> = told.try_iter().map(|(what, _)| what).collect();
    assert_eq!(asked, ["POST /agents/hostd/restart"]);
    assert!(parse(&["host", "restart-agent", "init"]).is_err());
}

#[test]
fn services_are_set_as_a_whole() {
    let (_dir, socket, told) = serve(vec![]);
    let failure = on_local(&socket, &["network", "set-services", "vmk0", "management,vmotion"]).unwrap_err();
    assert_eq!(failure.code(), 3);
    assert_eq!(
        told.recv().unwrap(),
        ("PATCH /network/vmkernel-adapters/vmk0".into(), r#"{"services":["management","vmotion"]}"#.into())
    );
}

#[test]
fn files_go_up_and_down_whole() {
    let entry = r#"{"path":"[d] isos/x.iso","kind":"file","size_bytes":5,"allocated_bytes":5,"modified":"2026-01-01T00:00:00Z"}"#;
    let (dir, socket, told) = serve(vec![
        ("PUT /datastores/d/files/isos/x.iso", "201 Created", entry.into()),
        ("GET /datastores/d/files/isos/x.iso", "200 OK", "hello".into()),
    ]);
    let file = dir.path().join("x.iso");
    std::fs::write(&file, "hello").unwrap();
    on_local(&socket, &["datastore", "upload", file.to_str().unwrap(), "d:isos/"]).unwrap();
    assert_eq!(told.recv().unwrap().1, "hello");
    let back = dir.path().join("back");
    on_local(&socket, &["datastore", "download", "[d] isos/x.iso", back.to_str().unwrap()]).unwrap();
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "hello");
    // What does not exist leaves nothing behind.
    let none = dir.path().join("none");
    assert_eq!(
        on_local(&socket, &["datastore", "download", "d:none", none.to_str().unwrap()]).unwrap_err().code(),
        3
    );
    assert!(!none.exists() && !dir.path().join("none.part").exists());
}

#[test]
fn an_absent_host_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let failure = on_local(&dir.path().join("none"), &["host"]).unwrap_err();
    assert_eq!(failure.code(), 5);
    assert!(failure.text().contains("because: "), "{}", failure.text());
}
