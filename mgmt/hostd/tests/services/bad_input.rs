//! Bad input: a precise answer, nothing changed, nothing left behind.

use serde_json::{Value, json};

use crate::host::{Whole, bzimage, spec};
use crate::http;

fn with(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Value {
    let mut value = spec("new");
    if let Value::Object(map) = &mut value {
        change(map);
    }
    value
}

#[test]
fn what_a_vm_cannot_be_is_refused_by_field_and_leaves_nothing() {
    let host = Whole::start();
    host.put("vmlinuz", &bzimage());
    host.put(
        "text.txt",
        b"no kernel at all, only a text that is long enough to have a header where a kernel has one",
    );
    host.put("odd.img", &[1; 700]);
    std::os::unix::fs::symlink("/etc/passwd", host.datastore().join("link")).unwrap();
    std::os::unix::fs::symlink("/etc", host.datastore().join("etc")).unwrap();
    host.create(&spec("taken"));
    let mac = "02:00:00:00:00:77";
    host.create(&json!({ "name": "with mac", "memory_mib": 64, "kernel": "[datastore1] vmlinuz", "nics": [{ "port_group": "VM Network", "mac": mac }] }));
    let before = host.everything();
    let cpus = host.get("/host").json()["cpu"]["threads"].as_u64().unwrap();

    type Case<'a> = (&'a str, u16, &'a str, &'a str, Value);
    let nic = |group: &str, mac: Option<&str>| json!([{ "port_group": group, "mac": mac }]);
    let cases: Vec<Case<'_>> = vec![
        (
            "unknown field",
            400,
            "InvalidArgument",
            "colour",
            with(|s| drop(s.insert("colour".into(), json!("blue")))),
        ),
        ("missing field", 400, "InvalidArgument", "kernel", with(|s| drop(s.remove("kernel")))),
        (
            "wrong type",
            400,
            "InvalidArgument",
            "memory_mib",
            with(|s| drop(s.insert("memory_mib".into(), json!("much")))),
        ),
        ("negative", 400, "InvalidArgument", "vcpus", with(|s| drop(s.insert("vcpus".into(), json!(-1))))),
        ("a name that exists", 409, "DuplicateName", "name", spec("taken")),
        ("the same name in capitals", 409, "DuplicateName", "name", spec("TAKEN")),
        ("a name that is a path", 400, "InvalidArgument", "name", spec("../../etc/evil")),
        ("an empty name", 400, "InvalidArgument", "name", spec("")),
        ("a hidden name", 400, "InvalidArgument", "name", spec(".keelson")),
        ("zero vCPUs", 400, "InvalidArgument", "vcpus", with(|s| drop(s.insert("vcpus".into(), json!(0))))),
        (
            "too many vCPUs",
            400,
            "InvalidArgument",
            "vcpus",
            with(|s| drop(s.insert("vcpus".into(), json!(cpus + 1)))),
        ),
        (
            "more vCPUs than any VM",
            400,
            "InvalidArgument",
            "vcpus",
            with(|s| drop(s.insert("vcpus".into(), json!(100_000)))),
        ),
        (
            "too little memory",
            400,
            "InvalidArgument",
            "memory_mib",
            with(|s| drop(s.insert("memory_mib".into(), json!(1)))),
        ),
        (
            "more memory than the host",
            422,
            "InsufficientResourcesFault",
            "memory_mib",
            with(|s| drop(s.insert("memory_mib".into(), json!(1u64 << 30)))),
        ),
        (
            "a memory that overflows",
            422,
            "InsufficientResourcesFault",
            "memory_mib",
            with(|s| drop(s.insert("memory_mib".into(), json!(u64::MAX)))),
        ),
        (
            "no kernel",
            400,
            "InvalidArgument",
            "kernel",
            with(|s| drop(s.insert("kernel".into(), json!("[datastore1] text.txt")))),
        ),
        (
            "a kernel that is not there",
            400,
            "InvalidArgument",
            "kernel",
            with(|s| drop(s.insert("kernel".into(), json!("[datastore1] nothing")))),
        ),
        (
            "an absolute path",
            400,
            "InvalidDatastorePath",
            "kernel",
            with(|s| drop(s.insert("kernel".into(), json!("/boot/vmlinuz")))),
        ),
        (
            "a path that climbs",
            400,
            "InvalidDatastorePath",
            "kernel",
            with(|s| drop(s.insert("kernel".into(), json!("[datastore1] ../../../boot/vmlinuz")))),
        ),
        (
            "a link",
            400,
            "InvalidDatastorePath",
            "kernel",
            with(|s| drop(s.insert("kernel".into(), json!("[datastore1] link")))),
        ),
        (
            "through a link",
            400,
            "InvalidDatastorePath",
            "kernel",
            with(|s| drop(s.insert("kernel".into(), json!("[datastore1] etc/passwd")))),
        ),
        (
            "a directory as initramfs",
            400,
            "InvalidDatastorePath",
            "initramfs",
            with(|s| drop(s.insert("initramfs".into(), json!("[datastore1] taken")))),
        ),
        (
            "another datastore",
            404,
            "NotFound",
            "datastore",
            with(|s| drop(s.insert("datastore".into(), json!("datastore7")))),
        ),
        (
            "a disk of nothing",
            400,
            "InvalidArgument",
            "disks[0].size_mib",
            with(|s| drop(s.insert("disks".into(), json!([{ "size_mib": 0 }])))),
        ),
        (
            "a disk of neither kind",
            400,
            "InvalidArgument",
            "disks[0]",
            with(|s| drop(s.insert("disks".into(), json!([{}])))),
        ),
        (
            "an odd image",
            400,
            "InvalidArgument",
            "disks[1].path",
            with(|s| {
                drop(s.insert("disks".into(), json!([{ "size_mib": 1 }, { "path": "[datastore1] odd.img" }])))
            }),
        ),
        (
            "an image twice",
            400,
            "InvalidArgument",
            "disks[1].path",
            with(|s| {
                drop(s.insert(
                    "disks".into(),
                    json!([{ "path": "[datastore1] x" }, { "path": "[datastore1] x" }]),
                ))
            }),
        ),
        (
            "a port group that is not",
            400,
            "InvalidArgument",
            "nics[0].port_group",
            with(|s| drop(s.insert("nics".into(), nic("Nowhere", None)))),
        ),
        (
            "a multicast MAC",
            400,
            "InvalidArgument",
            "nics[0].mac",
            with(|s| drop(s.insert("nics".into(), nic("VM Network", Some("03:00:00:00:00:01"))))),
        ),
        (
            "a MAC that is taken",
            409,
            "DuplicateName",
            "nics[0].mac",
            with(|s| drop(s.insert("nics".into(), nic("VM Network", Some(mac))))),
        ),
        (
            "a long command line",
            400,
            "InvalidArgument",
            "cmdline",
            with(|s| drop(s.insert("cmdline".into(), json!("x".repeat(3000))))),
        ),
    ];
    for (what, status, fault, field, body) in cases {
        let answer = host.send("POST", "/vms", &body);
        assert_eq!(
            (answer.status, answer.fault()),
            (status, (fault.into(), field.into())),
            "{what}: {}",
            String::from_utf8_lossy(&answer.body)
        );
        assert!(
            answer.json()["remedy"].as_str().is_some_and(|r| !r.is_empty())
                || what.contains("field")
                || what == "wrong type"
                || what == "negative",
            "{what} says what to do"
        );
        assert_eq!(host.everything(), before, "{what} left something");
    }
    let answer = http::send(&host.socket(), "POST", "/vms", b"{\"name\": \"x\",");
    assert_eq!((answer.status, answer.fault().0.as_str()), (400, "InvalidArgument"));
    assert_eq!(host.everything(), before);
}

#[test]
fn a_change_that_is_wrong_changes_nothing() {
    let host = Whole::start();
    host.put("vmlinuz", &bzimage());
    let vm = host.create(&spec("kept"));
    let path = format!("/vms/{}", vm.id);
    let before = host.everything();
    for (body, status, field) in [
        (json!({ "memory_mib": 128, "vcpus": 0 }), 400, "vcpus"),
        (json!({ "memory_mib": 1u64 << 40 }), 422, "memory_mib"),
        (json!({ "cmdline": "new", "kernel": "[datastore1] nothing" }), 400, "kernel"),
        (json!({ "cmdline": "new", "nics": [{ "port_group": "Nowhere" }] }), 400, "nics[0].port_group"),
        (json!({ "name": "renamed" }), 400, "name"),
    ] {
        let answer = host.send("PATCH", &path, &body);
        assert_eq!(
            (answer.status, answer.fault().1.as_str()),
            (status, field),
            "{}",
            String::from_utf8_lossy(&answer.body)
        );
        assert_eq!(host.everything(), before);
        assert_eq!(host.vm(vm.id), vm);
    }
    for path in [
        "/vms/nonsense",
        "/vms/00000000-0000-0000-0000-000000000000",
        "/tasks/00000000-0000-0000-0000-000000000000",
        "/datastores/none",
        "/datastores/datastore1/files/none",
    ] {
        assert_eq!(host.get(path).status, 404, "{path}");
    }
    assert_eq!(host.get("/vms?colour=blue").fault().1, "colour");
}
