//! The client against small servers: what it sends, what it makes of answers, what it trusts.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use super::*;
use crate::{Fault, LogLine, Login, TaskState, VmPowerAction};

/// A request as a server saw it.
struct Got {
    line: String,
    head: String,
    body: Vec<u8>,
}

fn read_request(stream: &mut impl Read) -> Option<Got> {
    let mut reader = BufReader::with_capacity(1, stream);
    let (mut line, mut head) = (String::new(), String::new());
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    loop {
        let mut field = String::new();
        reader.read_line(&mut field).ok()?;
        if field == "\r\n" {
            break;
        }
        head.push_str(&field.to_lowercase());
    }
    let length =
        head.lines().find_map(|l| l.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Got { line: line.trim_end().into(), head, body })
}

fn reply(status: &str, kind: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn json(body: &str) -> String {
    reply("200 OK", "application/json", body)
}

/// A server on a local socket that gives these answers, one for each request, and tells what it was asked.
fn serve(answers: Vec<String>) -> (tempfile::TempDir, Client, Receiver<Got>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (tell, told) = channel();
    thread::spawn(move || {
        let mut answers = answers.into_iter();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while let Some(got) = read_request(&mut stream) {
                tell.send(got).unwrap();
                match answers.next() {
                    Some(answer) => stream.write_all(answer.as_bytes()).unwrap(),
                    None => return,
                }
            }
        }
    });
    let client = Client::local_at(path);
    (dir, client, told)
}

#[test]
fn requests_carry_path_token_and_body() {
    let token = r#"{"token":"s3cret","idle_timeout_s":900}"#;
    let (_dir, client, told) = serve(vec![
        reply("201 Created", "application/json", token),
        json("[]"),
        reply("204 No Content", "text/plain", ""),
    ]);
    let session = client.login(&Login { username: "root".into(), password: "pass word".into() }).unwrap();
    let client = client.with_token(session.token);
    assert_eq!(client.files("data store", "isos/new").unwrap(), []);
    client.console_input(Uuid::nil(), b"ls\r").unwrap();

    let login = told.recv().unwrap();
    assert_eq!(login.line, "POST /api/v1/sessions HTTP/1.1");
    assert!(
        login.head.contains("content-type: application/json\r\n") && !login.head.contains("authorization"),
        "{}",
        login.head
    );
    assert_eq!(login.body, br#"{"username":"root","password":"pass word"}"#);
    let files = told.recv().unwrap();
    assert_eq!(files.line, "GET /api/v1/datastores/data%20store/files?path=isos%2Fnew HTTP/1.1");
    assert!(files.head.contains("authorization: bearer s3cret\r\n"), "{}", files.head);
    let typed = told.recv().unwrap();
    assert_eq!(typed.line, format!("POST /api/v1/vms/{}/console/input HTTP/1.1", Uuid::nil()));
    assert_eq!(typed.body, b"ls\r");
}

use uuid::Uuid;

#[test]
fn a_problem_comes_through_whole() {
    let problem = Problem::new(Fault::InvalidArgument, "a VM has at least one vCPU")
        .field("vcpus")
        .remedy("give 1 or more");
    let text = serde_json::to_string(&problem).unwrap();
    let (_dir, client, _told) = serve(vec![reply("400 Bad Request", "application/problem+json", &text)]);
    match client.vms() {
        Err(ClientError::Problem(got)) => assert_eq!(*got, problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_keelson_is_said_to_be_none() {
    let answers = vec![
        reply("502 Bad Gateway", "text/html", "<h1>oops</h1>"),
        json(r#"{"hello":1}"#),
        "SSH-2.0-OpenSSH\r\n".into(),
    ];
    let (_dir, client, _told) = serve(answers);
    for _ in 0..3 {
        match client.identity() {
            Err(ClientError::NotKeelson { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_absent_agent_and_a_lost_answer_differ() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::local_at(dir.path().join("none.sock")).health().unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("host agent"), "{error}");

    let (_dir, client, _told) = serve(vec![]);
    let error = client.vm_power(Uuid::nil(), VmPowerAction::On).unwrap_err();
    assert!(matches!(error, ClientError::NoAnswer { .. }), "{error:?}");
}

#[test]
fn an_upload_sends_what_it_declared() {
    let entry = r#"{"path":"[d] a b/x","kind":"file","size_bytes":300000,"allocated_bytes":300000,"modified":"2026-01-01T00:00:00Z"}"#;
    let (_dir, client, told) = serve(vec![reply("201 Created", "application/json", entry)]);
    let data: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut seen = Vec::new();
    let made = client.upload("d", "a b/x", &mut data.as_slice(), 300_000, &mut |n| seen.push(n)).unwrap();
    assert_eq!(made.size_bytes, 300_000);
    let got = told.recv().unwrap();
    assert_eq!(got.line, "PUT /api/v1/datastores/d/files/a%20b/x HTTP/1.1");
    assert!(!got.head.contains("transfer-encoding"), "{}", got.head);
    assert_eq!(got.body, data);
    assert_eq!(seen.last(), Some(&300_000));
    assert!(seen.is_sorted());
}

#[test]
fn an_empty_file_is_uploaded() {
    let entry = r#"{"path":"[d] x","kind":"file","size_bytes":0,"allocated_bytes":0,"modified":"2026-01-01T00:00:00Z"}"#;
    let (_dir, client, told) = serve(vec![reply("201 Created", "application/json", entry)]);
    client.upload("d", "x", &mut std::io::empty(), 0, &mut |_| ()).unwrap();
    assert!(told.recv().unwrap().head.contains("content-length: 0\r\n"));
}

#[test]
fn a_source_that_ends_early_is_named_and_the_upload_is_cut() {
    let (_dir, client, told) = serve(vec![]);
    let error = client.upload("d", "x", &mut &b"short"[..], 10, &mut |_| ()).unwrap_err();
    assert!(matches!(error, ClientError::Local { .. }), "{error:?}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("5 of 10"), "{cause}");
    // The server never had a whole request.
    assert!(told.recv_timeout(Duration::from_millis(200)).is_err());
}

#[test]
fn a_refusal_in_the_middle_of_an_upload_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut some = [0; 4096];
        stream.read_exact(&mut some).unwrap();
        let problem =
            serde_json::to_string(&Problem::new(Fault::NoDiskSpace, "[d] x: the datastore has 3 bytes left"))
                .unwrap();
        stream
            .write_all(reply("507 Insufficient Storage", "application/problem+json", &problem).as_bytes())
            .unwrap();
        // Closed with most of the body unread.
    });
    let mut zeros = std::io::repeat(0);
    let error = Client::local_at(&path).upload("d", "x", &mut zeros, 64 << 20, &mut |_| ()).unwrap_err();
    assert_eq!(error.fault(), Some(Fault::NoDiskSpace), "{error:?}");
    server.join().unwrap();
}

#[test]
fn a_download_that_is_cut_is_no_download() {
    let (_dir, client, _told) = serve(vec![reply("200 OK", "application/octet-stream", "hello")]);
    let mut out = Vec::new();
    assert_eq!(client.download_to("d", "x", &mut out, &mut |_, _| ()).unwrap(), 5);
    assert_eq!(out, b"hello");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhell").unwrap();
    });
    let error = Client::local_at(&path).download_to("d", "x", &mut Vec::new(), &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, ClientError::NoAnswer { .. }), "{error:?}");
}

#[test]
fn a_console_streams_until_its_end() {
    let stream = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let (_dir, client, _told) = serve(vec![stream.into()]);
    let mut text = String::new();
    client.console_stream(Uuid::nil()).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "abcde");
}

#[test]
fn a_task_is_waited_for() {
    let task = |state: &str| {
        json(&format!(
            r#"{{"id":"{}","name":"Power On Virtual Machine","target":"x","state":"{state}","progress":5,"message":"m","cancelable":false,"who":"root","started":"2026-01-01T00:00:00Z"}}"#,
            Uuid::nil()
        ))
    };
    let (_dir, client, told) = serve(vec![task("running"), task("running"), task("success")]);
    let began = client.task(Uuid::nil()).unwrap();
    let mut reports = 0;
    let ended = client.task_end(began, |_| reports += 1).unwrap();
    assert_eq!(ended.state, TaskState::Success);
    assert_eq!(reports, 3);
    told.recv().unwrap();
    assert!(told.recv().unwrap().line.contains("?wait=25 "));
}

#[test]
fn log_queries_are_written_out() {
    let (_dir, client, told) = serve(vec![json(
        r#"[{"seq":7,"time":"2026-01-01T00:00:00Z","source":"netd","level":"info","text":"up"}]"#,
    )]);
    let lines = client.logs(&LogQuery { since: 7, max: Some(10), source: Some("dcui/tty1".into()) }).unwrap();
    assert!(matches!(lines.as_slice(), [LogLine { seq: 7, .. }]));
    assert_eq!(told.recv().unwrap().line, "GET /api/v1/logs?since=7&max=10&source=dcui%2Ftty1 HTTP/1.1");
}

/// A TLS server with a fresh certificate; returns its port and fingerprint.
fn serve_tls(answer: String) -> (u16, Fingerprint) {
    let made = rcgen::generate_simple_self_signed(vec!["keelson".into()]).unwrap();
    let print = Fingerprint::of(made.cert.der());
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let (config, answer) = (Arc::clone(&config), answer.clone());
            thread::spawn(move || {
                let mut stream =
                    rustls::StreamOwned::new(rustls::ServerConnection::new(config).unwrap(), socket.unwrap());
                while read_request(&mut stream).is_some() {
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            });
        }
    });
    (port, print)
}

#[test]
fn trust_is_on_first_use_and_then_kept() {
    let (port, print) = serve_tls(json(r#"{"status":"ok"}"#));
    let host = format!("127.0.0.1:{port}");
    assert_eq!(certificate_of(&host).unwrap(), print);
    let client = Client::https(&host, print).unwrap();
    for _ in 0..3 {
        assert_eq!(client.health().unwrap().status, "ok");
    }

    let other = Fingerprint([7; 32]);
    let error = Client::https(&host, other).unwrap().health().unwrap_err();
    match &error {
        ClientError::FingerprintMismatch { expected, found, .. } => {
            assert_eq!((*expected, *found), (other, print))
        }
        wrong => panic!("{wrong:?}"),
    }
    let text = error.to_string();
    assert!(
        text.contains("HAS CHANGED")
            && text.contains(&print.to_string())
            && text.contains(&other.to_string()),
        "{text}"
    );
}

#[test]
fn what_speaks_no_tls_is_said_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    thread::spawn(move || {
        for socket in listener.incoming() {
            socket.unwrap().write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        }
    });
    let error = certificate_of(&host).unwrap_err();
    assert!(
        matches!(error, ClientError::Unreachable { .. }) && error.to_string().contains("TLS 1.3"),
        "{error:?}"
    );
    let error = Client::https(&host, Fingerprint([0; 32])).unwrap().health().unwrap_err();
    assert!(
        matches!(error, ClientError::Unreachable { .. }) && error.to_string().contains("TLS 1.3"),
        "{error:?}"
    );
}

#[test]
fn hosts_are_read() {
    for (written, base) in [
        ("esx1", "https://esx1"),
        ("192.0.2.1:8443", "https://192.0.2.1:8443"),
        ("https://esx1/", "https://esx1"),
        ("[2001:db8::1]:443", "https://[2001:db8::1]:443"),
    ] {
        assert_eq!(connect::base_of(written).unwrap(), base);
    }
    for wrong in ["", "a/b", "u@h", "h:0", "h:99999", "h:x", "a b", "h?q"] {
        assert!(connect::base_of(wrong).is_err(), "{wrong}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_one_segment(text: String) {
        let encoded = calls::segment(&text);
        proptest::prop_assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)));
    }

    #[test]
    fn any_host_is_read_or_refused(text: String) {
        let _ = connect::base_of(&text);
    }
}
