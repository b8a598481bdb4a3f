//! Uploads: cut half-way, into a full store, to places outside; and the files' other operations.

use std::io::Write;
use std::net::Shutdown;
use std::process::Command;

use keelson_api::{Datastore, FileEntry};

use crate::host::{Host, Whole, skip, walk};
use crate::http;

#[test]
fn files_are_stored_listed_fetched_and_deleted() {
    let host = Whole::start();
    let store: Datastore = host.get("/datastores/datastore1").read();
    assert!(store.accessible && store.kind == "local" && store.capacity_bytes > store.free_bytes);
    let content: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let answer =
        http::send(&host.socket(), "PUT", "/datastores/datastore1/files/dir/sub dir/file.bin", &content);
    assert_eq!(answer.status, 201);
    assert_eq!(answer.read::<FileEntry>().path, "[datastore1] dir/sub dir/file.bin");
    assert_eq!(
        http::send_chunked(&host.socket(), "PUT", "/datastores/datastore1/files/chunked", &content).status,
        201
    );
    for path in ["dir/sub dir/file.bin", "chunked"] {
        assert!(host.get(&format!("/datastores/datastore1/files/{path}")).body == content, "{path}");
    }
    let list: Vec<FileEntry> = host.get("/datastores/datastore1/files?path=").read();
    assert_eq!(
        list.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(),
        ["[datastore1] chunked", "[datastore1] dir"]
    );
    let delete = |path: &str| {
        http::send(&host.socket(), "DELETE", &format!("/datastores/datastore1/files/{path}"), b"").status
    };
    assert_eq!(delete("dir"), 409);
    assert_eq!(delete("dir/sub dir/file.bin"), 204);
    assert_eq!(delete("dir/sub dir"), 204);
    assert_eq!(delete("dir"), 204);
    assert_eq!(delete("dir"), 404);
}

#[test]
fn a_path_outside_the_datastore_is_refused() {
    let host = Whole::start();
    std::os::unix::fs::symlink(host.dir.path(), host.datastore().join("out")).unwrap();
    std::os::unix::fs::symlink(host.dir.path().join("state/host.toml"), host.datastore().join("host"))
        .unwrap();
    let before = host.everything();
    let mut outside = Vec::new();
    walk(&host.dir.path().join("state"), &mut outside);
    for path in [
        "../x",
        "a/../../x",
        "%2e%2e/x",
        "a//b",
        ".keelson-datastore",
        "a/.part-1",
        "out/new",
        "host",
        "a/%00b",
        "a%2f..%2f..%2fx",
        "out/state/host.toml",
    ] {
        for method in ["PUT", "GET", "DELETE"] {
            let mut stream = http::connect(&host.socket());
            let length = if method == "PUT" { "Content-Length: 1\r\n" } else { "" };
            write!(stream, "{method} /api/v1/datastores/datastore1/files/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{length}\r\n{}", if method == "PUT" { "x" } else { "" }).unwrap();
            let (status, ..) = http::answer_head(&mut std::io::BufReader::new(stream));
            assert!((400..500).contains(&status), "{method} {path}: {status}");
        }
    }
    assert_eq!(host.everything(), before);
    let mut now = Vec::new();
    walk(&host.dir.path().join("state"), &mut now);
    assert_eq!(now, outside);
    assert_eq!(
        host.get("/datastores/datastore1/files?path=../").fault(),
        ("InvalidDatastorePath".into(), "path".into())
    );
}

#[test]
fn a_cut_upload_leaves_nothing_and_keeps_the_old_file() {
    let host = Whole::start();
    host.put("kept", b"the old content");
    let before = host.everything();
    for (path, chunked) in
        [("kept", false), ("new/deep/file", false), ("kept", true), ("new/deep/file", true)]
    {
        let mut stream = http::connect(&host.socket());
        let path = format!("/datastores/datastore1/files/{path}");
        let head = http::head("PUT", &path, (!chunked).then_some(1_000_000));
        let head =
            if chunked { head.replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n") } else { head };
        stream.write_all(head.as_bytes()).unwrap();
        if chunked {
            stream.write_all(b"80000\r\n").unwrap();
        }
        stream.write_all(&vec![7; 400_000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // The answer, or the end of the connection, comes when the server has noticed.
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut rest);
        let text = String::from_utf8_lossy(&rest);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{text}");
        host.until("something is left", || host.everything() == before);
    }
    assert_eq!(host.get("/datastores/datastore1/files/kept").body, b"the old content");
}

#[test]
fn a_full_store_is_507_and_nothing_is_left() {
    let mut host = Host::new();
    // A store of its own size, in a mount namespace of the host agent's own.
    let mount = format!("mount -t tmpfs -o size=12m tmpfs {} && exec \"$@\"", host.datastore().display());
    let probe = Command::new("unshare").args(["-m", "sh", "-c", &mount, "sh", "true"]).output();
    if !probe.is_ok_and(|o| o.status.success()) {
        return skip("lab", "no mount namespace can be made here (root is needed)");
    }
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &mount, "sh", env!("CARGO_BIN_EXE_hostd")]);
    host.start_as(command);
    let inside = format!("/proc/{}/root{}", host.hostd.as_ref().unwrap().id(), host.datastore().display());
    let files = || {
        let mut all = Vec::new();
        walk(inside.as_ref(), &mut all);
        all.sort();
        all
    };
    host.put("small", &[1; 1000]);
    let before = files();
    let big = vec![1; 20 << 20];
    let store: Datastore = host.get("/datastores/datastore1").read();
    assert_eq!(store.kind, "ram");
    let announced = http::send(&host.socket(), "PUT", "/datastores/datastore1/files/new/big", &big);
    assert_eq!(
        (announced.status, announced.fault().0.as_str()),
        (507, "NoDiskSpace"),
        "{}",
        String::from_utf8_lossy(&announced.body)
    );
    assert!(announced.json()["remedy"].is_string());
    assert_eq!(files(), before);
    let chunked = http::send_chunked(&host.socket(), "PUT", "/datastores/datastore1/files/new/big", &big);
    assert_eq!(
        (chunked.status, chunked.fault().0.as_str()),
        (507, "NoDiskSpace"),
        "{}",
        String::from_utf8_lossy(&chunked.body)
    );
    assert_eq!(files(), before);
    // A disk full of holes takes no space and is welcome.
    let holes = vec![0; 10 << 20];
    let entry: FileEntry =
        http::send(&host.socket(), "PUT", "/datastores/datastore1/files/holes", &holes).read();
    assert_eq!((entry.size_bytes, entry.allocated_bytes), (10 << 20, 0));
}
