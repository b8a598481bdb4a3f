//! The front of a real hostd: which requests it refuses, and that it closes after them; keep-alive, lengths, uploads.

mod host;

use std::io::Write;

use host::Host;

/// Everything that two readers could take in two ways; a second request hides in the body of most.
#[test]
fn smuggling_is_refused_and_the_connection_closed() {
    let host = Host::start();
    let hidden = "GET /api/v1/identity HTTP/1.1\r\nHost: h\r\n\r\n";
    let post =
        |fields: &str| format!("POST /api/v1/sessions HTTP/1.1\r\nHost: h\r\n{fields}\r\n0\r\n\r\n{hidden}");
    let cases = [
        post("Content-Length: 5\r\nContent-Length: 5\r\n"),
        post("Content-Length: 5\r\nContent-Length: 46\r\n"),
        post("Content-Length: 5, 5\r\n"),
        post("Content-Length: +5\r\n"),
        post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        post("Transfer-Encoding: chunked, identity\r\n"),
        post("Transfer-Encoding: identity\r\n"),
        post("Transfer-Encoding: xchunked\r\n"),
        post("Transfer-Encoding : chunked\r\n"),
        post("Transfer-Encoding:\r\n chunked\r\n"),
        post("X: y\r\n Transfer-Encoding: chunked\r\n"),
        post("X: y\nTransfer-Encoding: chunked\r\n"),
        post("X: y\rTransfer-Encoding: chunked\r\n"),
        post("X: y\0\r\n"),
        post("Host: other\r\n"),
        format!("POST /api/v1/sessions HTTP/1.1\r\n\r\n{hidden}"),
        format!("GET /healthz HTTP/1.1\nHost: h\n\n{hidden}"),
        format!("GET  /healthz HTTP/1.1\r\nHost: h\r\n\r\n{hidden}"),
        format!("GET http://h/healthz HTTP/1.1\r\nHost: h\r\n\r\n{hidden}"),
        format!("GET /healthz HTTP/1.0\r\nHost: h\r\n\r\n{hidden}"),
        format!("\r\nGET /healthz HTTP/1.1\r\nHost: h\r\n\r\n{hidden}"),
        format!("GET /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{hidden}", hidden.len()),
        "GET /api/v1/%2e%2e/healthz HTTP/1.1\r\nHost: h\r\n\r\n".into(),
    ];
    for case in &cases {
        let mut local = host.local();
        local.send(case.as_bytes());
        let answer = local.answer();
        assert_eq!((answer.status, answer.fault().as_str()), (400, "MalformedRequest"), "{case:?}");
        assert!(local.is_closed(), "answered again or not closed: {case:?}");
    }
    for case in cases.iter().step_by(5) {
        let mut network = host.network();
        network.send(case.as_bytes());
        assert_eq!(network.answer().status, 400, "{case:?}");
        assert!(network.is_closed(), "answered again or not closed: {case:?}");
    }
    assert_eq!(host.network().get("/healthz").status, 200);
}

#[test]
fn odd_chunks_are_refused_and_the_connection_closed() {
    let host = Host::start();
    for chunks in [
        "3;a=b\r\nabc\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        "zz\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "0\r\nX: y\r\n\r\n",
        "fffffffffffffffff\r\n",
    ] {
        let mut local = host.local();
        let head = local.head("POST", "/account/verify");
        local.send(
            format!(
                "{head}Transfer-Encoding: chunked\r\n\r\n{chunks}GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
            )
            .as_bytes(),
        );
        assert_eq!(local.answer().status, 400, "{chunks:?}");
        assert!(local.is_closed(), "{chunks:?}");
    }
}

#[test]
fn heads_and_bodies_that_are_too_large_are_refused() {
    let host = Host::start();
    let mut local = host.local();
    let head = local.head("GET", "/identity");
    local.send(format!("{head}X: {}\r\n\r\n", "y".repeat(20_000)).as_bytes());
    assert_eq!((local.answer().status, local.is_closed()), (413, true));
    // Announced: refused before a byte of it is taken. In chunks: once it is too much.
    let mut local = host.local();
    let head = local.head("POST", "/vms");
    local.send(format!("{head}Content-Length: 1048577\r\nExpect: 100-continue\r\n\r\n").as_bytes());
    assert_eq!((local.answer().status, local.is_closed()), (413, true));
    let mut local = host.local();
    let head = local.head("POST", "/vms");
    local.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes());
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    for _ in 0..17 {
        // The answer may come, and the connection go, before the last chunk.
        let _ = local.stream.get_mut().write_all(chunk.as_bytes());
    }
    assert_eq!(local.answer().status, 413);
}

#[test]
fn a_connection_serves_many_requests_and_ends_when_asked() {
    let host = Host::start();
    let mut network = host.network();
    let head = network.head("GET", "/healthz");
    network.send(format!("{head}\r\n{head}\r\n").as_bytes());
    assert_eq!((network.answer().status, network.answer().status), (200, 200));
    assert_eq!(network.get("/nothing").status, 403);
    assert_eq!(
        network.get("/healthz").status,
        200,
        "a refused request without a body does not end the connection"
    );
    network.send(format!("{head}Connection: close\r\n\r\n").as_bytes());
    let last = network.answer();
    assert_eq!((last.status, last.field("connection")), (200, Some("close")));
    assert!(network.is_closed());
}

#[test]
fn other_methods_and_paths_are_told_apart() {
    let host = Host::start();
    let mut local = host.local();
    let answer = local.bare("DELETE", "/identity");
    assert_eq!(
        (answer.status, answer.fault().as_str(), answer.field("allow")),
        (405, "MethodNotAllowed", Some("GET"))
    );
    let answer = local.bare("HEAD", "/identity");
    assert_eq!(answer.status, 405);
    assert_eq!(local.get("/nowhere").fault(), "NotFound");
    assert_eq!(local.get("/tokens/not-an-id").status, 405);
    assert_eq!(local.bare("DELETE", "/tokens/not-an-id").fault(), "NotFound");
    let mut local = host.local();
    local.send(b"BREW /api/v1/pot HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!((local.answer().status, local.is_closed()), (405, true));
}

#[test]
fn wrong_json_is_told_by_field_line_and_column() {
    let host = Host::start();
    let mut local = host.local();
    let answer = local.text("POST", "/account/verify", "{\"username\": \"root\",\n \"password\": 3}").value();
    assert_eq!((&answer["fault"], &answer["field"]), (&"InvalidArgument".into(), &"password".into()));
    assert!(answer["detail"].as_str().unwrap().contains("line 2 column"), "{answer}");
    assert_eq!(local.text("POST", "/account/verify", "{\"user\": \"root\"}").value()["field"], "user");
    assert_eq!(
        local.text("POST", "/account/verify", "{\"username\": \"root\"}").value()["field"],
        "password"
    );
    assert_eq!(local.text("POST", "/account/verify", "{").status, 400);
    assert_eq!(local.text("POST", "/account/verify", "").status, 400);
}

#[test]
fn files_go_up_whole_or_not_at_all() {
    let (host, token) = Host::with_session();
    let file = "/datastores/datastore1/files";
    let data = "0123456789abcdef".repeat(20_000);
    // With a length, after "100 Continue".
    let mut network = host.network().with(&token);
    let head = network.head("PUT", &format!("{file}/length"));
    network.send(format!("{head}Content-Length: {}\r\nExpect: 100-continue\r\n\r\n", data.len()).as_bytes());
    assert_eq!(network.answer_head().0, 100);
    network.send(data.as_bytes());
    assert_eq!(network.answer().status, 201);
    // In chunks, on the same connection.
    let head = network.head("PUT", &format!("{file}/chunks"));
    network.send(
        format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{data}\r\n0\r\n\r\n", data.len()).as_bytes(),
    );
    assert_eq!(network.answer().status, 201);
    for name in ["length", "chunks"] {
        assert_eq!(network.get(&format!("{file}/{name}")).body, data.as_bytes(), "{name}");
    }
    // Cut, with a length and in chunks.
    for (name, framing) in [
        ("cut1", format!("Content-Length: {}\r\n\r\n{}", data.len(), &data[..data.len() / 2])),
        ("cut2", format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{data}\r\n", data.len())),
    ] {
        let mut network = host.network().with(&token);
        let head = network.head("PUT", &format!("{file}/{name}"));
        network.send(format!("{head}{framing}").as_bytes());
        drop(network);
    }
    let mut network = host.network().with(&token);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let left: Vec<_> = std::fs::read_dir(host.path("datastore"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| !n.starts_with(".keelson-datastore"))
            .collect();
        if left.iter().all(|name| name == "length" || name == "chunks") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "a cut upload left something behind: {left:?}");
        std::thread::yield_now();
    }
    assert_eq!(network.get(&format!("{file}/cut1")).status, 404);
}

#[test]
fn a_head_that_drips_is_given_up() {
    let host = Host::start();
    let mut local = host.local();
    local.send(b"GET /healthz HTTP/1.1\r\n");
    // A line a second keeps the connection busy past the ten seconds that a head may take.
    for _ in 0..11 {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let _ = local.stream.get_mut().write_all(b"X: y\r\n");
    }
    assert_eq!((local.answer().status, local.is_closed()), (400, true));
}

/// A ClientHello of RFC 5246 with what every client of TLS 1.2 offers, and without the `supported_versions` of TLS 1.3.
#[test]
fn tls_1_2_is_refused() {
    let host = Host::start();
    let extensions: &[&[u8]] = &[
        &[0, 10, 0, 6, 0, 4, 0, 29, 0, 23], // supported_groups: x25519, secp256r1
        &[0, 11, 0, 2, 1, 0],               // ec_point_formats: uncompressed
        &[0, 13, 0, 6, 0, 4, 4, 3, 8, 4], // signature_algorithms: ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256
    ];
    let extensions = extensions.concat();
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    hello.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend(extensions);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(hello.len() + 4).unwrap().to_be_bytes());
    record.extend([1, 0]);
    record.extend(u16::try_from(hello.len()).unwrap().to_be_bytes());
    record.extend(hello);
    let mut tcp = std::net::TcpStream::connect(host.address()).unwrap();
    tcp.write_all(&record).unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut tcp, &mut answer).unwrap();
    // A fatal alert, protocol_version (70).
    assert_eq!(answer.first(), Some(&21), "{answer:?}");
    assert!(answer.ends_with(&[2, 70]), "{answer:?}");
}
