//! A real hostd without init or netd, in a temporary directory; and the raw HTTP of a client that may be as rude as it likes.
// Each test binary uses a part of it; a test that unwraps fails as it should.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;

pub(crate) const PASSWORD: &str = "a fine password";

/// A hostd process.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    child: Child,
    address: SocketAddr,
}

impl Host {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (child, address) = spawn(dir.path());
        Self { dir, child, address }
    }

    /// With the password [`PASSWORD`], and a session's token.
    pub(crate) fn with_session() -> (Self, String) {
        let host = Self::start();
        assert_eq!(
            host.local().json("PUT", "/account/password", &serde_json::json!({"new": PASSWORD})).status,
            204
        );
        let token = host.log_in(PASSWORD);
        (host, token)
    }

    pub(crate) fn log_in(&self, password: &str) -> String {
        let answer = self.network().json(
            "POST",
            "/sessions",
            &serde_json::json!({"username": "root", "password": password}),
        );
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.value()["token"].as_str().unwrap().to_owned()
    }

    /// Kills it and starts it again on the same files.
    pub(crate) fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.child, self.address) = spawn(self.dir.path());
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path("state/tls/cert.pem")).unwrap()
    }

    /// A connection over the local socket.
    pub(crate) fn local(&self) -> Http<UnixStream> {
        local(&self.path("run/hostd.sock"))
    }

    /// A TLS connection that trusts nothing but the host's own certificate.
    pub(crate) fn network(&self) -> Http<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = ClientConnection::new(Arc::new(config), ServerName::try_from("keelson").unwrap()).unwrap();
        let tcp = TcpStream::connect(self.address).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        Http::over(StreamOwned::new(tls, tcp))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path) -> (Child, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hostd"))
        .args(["--listen", "127.0.0.1:0", "--state"])
        .arg(dir.join("state"))
        .arg("--datastore")
        .arg(dir.join("datastore"))
        .arg("--run")
        .arg(dir.join("run"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    let address = loop {
        let line = lines.next().unwrap_or_else(|| panic!("hostd ended: {said:?}")).unwrap();
        if let Some((_, address)) = line.split_once("HTTPS is served on ") {
            break address.parse().unwrap();
        }
        said.push(line);
    };
    // Goes on reading, so that hostd never waits for its log to be read.
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| println!("{line}")));
    (child, address)
}

/// How long a test waits for hostd.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection over a local socket.
pub(crate) fn local(path: &Path) -> Http<UnixStream> {
    let socket = UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    Http::over(socket)
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn fault(&self) -> String {
        self.value()["fault"].as_str().unwrap().to_owned()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
        })
    }
}

/// One connection.
pub(crate) struct Http<S: Read + Write> {
    pub(crate) stream: BufReader<S>,
    token: Option<String>,
}

impl<S: Read + Write> Http<S> {
    fn over(stream: S) -> Self {
        Self { stream: BufReader::new(stream), token: None }
    }

    pub(crate) fn with(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
        self.stream.get_mut().flush().unwrap();
    }

    /// The head of a request below the API's base, without the empty line.
    pub(crate) fn head(&self, method: &str, path: &str) -> String {
        let token = self.token.as_ref().map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
        format!("{method} /api/v1{path} HTTP/1.1\r\nHost: keelson\r\n{token}")
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.bare("GET", path)
    }

    pub(crate) fn bare(&mut self, method: &str, path: &str) -> Answer {
        let head = self.head(method, path);
        self.send(format!("{head}\r\n").as_bytes());
        self.read(method == "HEAD")
    }

    pub(crate) fn json(&mut self, method: &str, path: &str, body: &Value) -> Answer {
        self.text(method, path, &body.to_string())
    }

    pub(crate) fn text(&mut self, method: &str, path: &str, body: &str) -> Answer {
        let head = self.head(method, path);
        self.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
        self.answer()
    }

    pub(crate) fn answer(&mut self) -> Answer {
        self.read(false)
    }

    /// The next answer's head; the empty line is read, the body not.
    pub(crate) fn answer_head(&mut self) -> (u16, String) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(
                self.stream.read_line(&mut head).unwrap() > 0,
                "the connection ended within an answer's head: {head:?}"
            );
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head)
    }

    fn read(&mut self, no_body: bool) -> Answer {
        let (status, head) = self.answer_head();
        let mut answer = Answer { status, head, body: Vec::new() };
        if let Some(length) = answer.field("content-length").map(|l| l.parse().unwrap()).filter(|_| !no_body)
        {
            answer.body = vec![0; length];
            self.stream.read_exact(&mut answer.body).unwrap();
        }
        answer
    }

    /// One chunk of a chunked body.
    pub(crate) fn chunk(&mut self) -> Vec<u8> {
        let mut size = String::new();
        self.stream.read_line(&mut size).unwrap();
        let mut data = vec![0; usize::from_str_radix(size.trim(), 16).unwrap() + 2];
        self.stream.read_exact(&mut data).unwrap();
        data.truncate(data.len() - 2);
        data
    }

    /// Whether the other end has closed, and has said nothing more before.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(e) => {
                rest.is_empty()
                    && matches!(
                        e.kind(),
                        std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::UnexpectedEof
                    )
            }
        }
    }
}
