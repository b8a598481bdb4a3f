//! The relay between client and route, with routes made for it: streams flow at once, vanished clients are noticed, early answers arrive.
#![allow(clippy::unwrap_used, clippy::result_large_err)] // a test ends by panicking; the crate says why its faults are large

mod host;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_hostd::agent::Agent;
use keelson_hostd::front::{Front, Listening};
use keelson_hostd::http::{Access, Method, Response, Router};
use keelson_hostd::paths::Paths;

const PATIENCE: Duration = Duration::from_secs(20);

/// A front in this process, with these routes.
fn front(install: impl FnOnce(&mut Router)) -> (tempfile::TempDir, PathBuf, Listening) {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths {
        state: dir.path().join("state"),
        datastore: dir.path().join("datastore"),
        run: dir.path().join("run"),
    };
    let mut router = Router::default();
    install(&mut router);
    let socket = paths.local_socket();
    let front = Front::start(Agent::open(paths, None), router, &[]).unwrap();
    let listening = front.listen_local(&socket).unwrap();
    (dir, socket, listening)
}

/// A closure that can be called once, from a route that can be called often.
fn once<T>(value: T) -> impl Fn() -> T {
    let value = Mutex::new(Some(value));
    move || value.lock().unwrap().take().unwrap()
}

#[test]
fn a_stream_flows_at_once_and_ends_with_the_route() {
    let (say, lines) = mpsc::channel::<String>();
    let lines = once(lines);
    let (_dir, socket, _listening) = front(|router| {
        router.route(Method::Get, "/stream", Access::Root, move |_, _| {
            let lines = lines();
            let run = move |to: &mut dyn Write| {
                lines.iter().try_for_each(|line| to.write_all(line.as_bytes())).unwrap()
            };
            Ok(Response::Stream { content_type: "application/octet-stream", run: Box::new(run) })
        });
    });
    let mut client = host::local(&socket);
    let head = client.head("GET", "/stream");
    client.send(format!("{head}\r\n").as_bytes());
    let (status, head) = client.answer_head();
    assert!(status == 200 && head.contains("Transfer-Encoding: chunked"), "{head}");
    // Each piece is there before the next is made.
    for piece in ["a", "few", "bytes", &"x".repeat(200_000)] {
        say.send(piece.into()).unwrap();
        let mut got = Vec::new();
        while got.len() < piece.len() {
            got.extend(client.chunk());
        }
        assert_eq!(got, piece.as_bytes());
    }
    drop(say);
    assert_eq!(client.chunk(), b"");
    assert_eq!(client.get("/nowhere").status, 404, "the connection goes on after a stream");
}

#[test]
fn a_client_that_goes_is_noticed_by_a_quiet_stream_and_by_a_waiting_route() {
    let (told, gone) = mpsc::channel();
    let (for_stream, for_wait) = (told.clone(), told);
    let (_dir, socket, _listening) = front(|router| {
        router.route(Method::Get, "/stream", Access::Root, move |request, _| {
            let (client, told) = (request.gone(), for_stream.clone());
            let run = move |_: &mut dyn Write| {
                let (wake, woken) = mpsc::channel::<()>();
                client.on_gone(move || drop(wake));
                let _ = woken.recv();
                told.send("stream").unwrap();
            };
            Ok(Response::Stream { content_type: "text/plain", run: Box::new(run) })
        });
        router.route(Method::Get, "/wait", Access::Root, move |request, _| {
            for_wait.send("waits").unwrap();
            if request.gone().wait(PATIENCE * 2) {
                for_wait.send("wait").unwrap();
            }
            Ok(Response::Empty(204))
        });
    });
    let mut client = host::local(&socket);
    let head = client.head("GET", "/stream");
    client.send(format!("{head}\r\n").as_bytes());
    client.answer_head();
    drop(client);
    assert_eq!(gone.recv_timeout(PATIENCE), Ok("stream"));
    let mut client = host::local(&socket);
    let head = client.head("GET", "/wait");
    client.send(format!("{head}\r\n").as_bytes());
    assert_eq!(gone.recv_timeout(PATIENCE), Ok("waits"));
    drop(client);
    assert_eq!(gone.recv_timeout(PATIENCE), Ok("wait"));
}

#[test]
fn a_route_tells_a_cut_body_from_a_whole_one() {
    let (told, heard) = mpsc::channel();
    let (_dir, socket, _listening) = front(|router| {
        router.upload(Method::Put, "/body", Access::Root, move |request, _| {
            let mut bytes = Vec::new();
            let end = request.body.read_to_end(&mut bytes).map_err(|e| e.kind());
            told.send((request.content_length, end)).unwrap();
            Ok(Response::Empty(204))
        });
    });
    let cut = Err(std::io::ErrorKind::UnexpectedEof);
    for (framing, expected) in [
        ("Content-Length: 5\r\n\r\nabcde", (Some(5), Ok(5))),
        ("Content-Length: 5\r\n\r\nabcd", (Some(5), cut)),
        ("Content-Length: 0\r\n\r\n", (Some(0), Ok(0))),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", (None, Ok(5))),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", (None, cut)),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nabc", (None, cut)),
    ] {
        let mut client = host::local(&socket);
        let head = client.head("PUT", "/body");
        client.send(format!("{head}{framing}").as_bytes());
        client.stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(heard.recv_timeout(PATIENCE), Ok(expected), "{framing}");
    }
}

#[test]
fn an_answer_before_the_end_of_a_large_body_arrives() {
    let (_dir, socket, _listening) = front(|router| {
        router.upload(Method::Put, "/full", Access::Root, |request, _| {
            let mut some = [0; 100_000];
            request.body.read_exact(&mut some).unwrap();
            Err(keelson_api::Problem::new(keelson_api::Fault::NoDiskSpace, "full"))
        });
    });
    let mut client = host::local(&socket);
    let head = client.head("PUT", "/full");
    client.send(format!("{head}Content-Length: 100000000000\r\n\r\n").as_bytes());
    // It takes no more soon after it has answered: ten seconds are far less than all of it would need.
    let (block, begun) = (vec![7; 1 << 20], std::time::Instant::now());
    while client.stream.get_mut().write_all(&block).is_ok() {
        assert!(begun.elapsed() < PATIENCE, "the front goes on reading a body that nobody wants");
    }
    assert_eq!(client.answer().status, 507);
}

#[test]
fn the_inside_is_closed_to_all_but_the_front() {
    let (_dir, _socket, _listening) = front(|router| {
        router.route(Method::Get, "/x", Access::Root, |_, _| Ok(Response::Empty(204)));
    });
    // The abstract name is in /proc for all to see: knowing it is not enough.
    let names = std::fs::read_to_string("/proc/net/unix").unwrap();
    let names: Arc<Vec<String>> = Arc::new(
        names
            .lines()
            .filter_map(|l| l.split_once("@keelson-hostd-").map(|(_, n)| format!("keelson-hostd-{n}")))
            .collect(),
    );
    assert!(!names.is_empty());
    for name in names.iter() {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
        // Another test's may be gone by now.
        let Ok(mut inside) = std::os::unix::net::UnixStream::connect_addr(&address) else { continue };
        inside.set_read_timeout(Some(PATIENCE)).unwrap();
        inside
            .write_all(
                b"GET /api/v1/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\nx-keelson-ticket: 0\r\n\r\n",
            )
            .unwrap();
        let mut answer = String::new();
        let _ = inside.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
}
