//! Connections: TLS 1.3 to a pinned certificate over TCP, or the local Unix socket.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use super::error::Connecting;
use super::{CONNECT, ClientError, Fingerprint};

/// The certificate that a host shows now. Nothing is sent to it: a person has to compare this with the host's console screen first.
pub fn certificate_of(host: &str) -> Result<Fingerprint, ClientError> {
    let unreachable = |remedy: &str, source: io::Error| ClientError::Unreachable {
        host: host.into(),
        request: "its certificate".into(),
        remedy: remedy.into(),
        source: Box::new(source),
    };
    let base: Uri = base_of(host)?
        .parse()
        .map_err(|e| ClientError::BadHost { host: host.into(), why: format!("{e}") })?;
    let name = base.host().unwrap_or_default();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let addrs = std::net::ToSocketAddrs::to_socket_addrs(&(bare, base.port_u16().unwrap_or(443)))
        .map_err(|e| unreachable("its name is not known here; check it, or give its address", e))?;
    let socket = tcp(addrs, CONNECT).map_err(|e| unreachable(TCP_REMEDY, e))?;
    let (config, seen) = tls_config(None).map_err(|e| unreachable(TLS_REMEDY, e))?;
    let name = server_name(name).map_err(|e| unreachable(TLS_REMEDY, e))?;
    handshake(config, name, socket, CONNECT).map_err(|e| unreachable(TLS_REMEDY, e))?;
    let found = seen.lock().ok().and_then(|seen| *seen);
    found.ok_or_else(|| unreachable(TLS_REMEDY, io::Error::other("it showed no certificate")))
}

const TCP_REMEDY: &str = "check that it is on, that its address is right and that this network reaches it";
const TLS_REMEDY: &str =
    "something answers there that does not speak TLS 1.3 as a Keelson host does; check address and port";
const LOCAL_REMEDY: &str =
    "the host agent is not running, or this user may not reach it; run as root on a Keelson host";

/// `https://HOST[:PORT]` for what a person wrote.
pub(super) fn base_of(host: &str) -> Result<String, ClientError> {
    let bad = |why: &str| ClientError::BadHost { host: host.into(), why: why.into() };
    let plain = host.trim().trim_start_matches("https://").trim_end_matches('/');
    if plain.is_empty() || plain.contains(['/', '@', '?', '#', ' ']) {
        return Err(bad("a name or address is expected"));
    }
    let base = format!("https://{plain}");
    let uri: Uri = base.parse().map_err(|e| bad(&format!("{e}")))?;
    let rest = uri.authority().and_then(|a| a.as_str().get(a.host().len()..)).unwrap_or_default();
    if !rest.is_empty() && uri.port_u16().is_none_or(|p| p == 0) {
        return Err(bad("the port is a number from 1 to 65535"));
    }
    server_name(uri.host().unwrap_or_default()).map_err(|e| bad(&e.to_string()))?;
    Ok(base)
}

fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    ServerName::try_from(bare).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// The trusted certificate and the one shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mismatch {
    pub(super) expected: Fingerprint,
    pub(super) found: Fingerprint,
}

/// Accepts the certificate with the pinned fingerprint only, or any when none is pinned yet; notes the one it was shown. That the
/// peer holds the certificate's key is checked in either case.
#[derive(Debug)]
struct Pinned {
    pin: Option<Fingerprint>,
    seen: Arc<Mutex<Option<Fingerprint>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Fingerprint::of(end_entity);
        if let Ok(mut seen) = self.seen.lock() {
            *seen = Some(found);
        }
        match self.pin {
            Some(pin) if pin != found => Err(rustls::CertificateError::ApplicationVerificationFailure.into()),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

type Seen = Arc<Mutex<Option<Fingerprint>>>;

fn tls_config(pin: Option<Fingerprint>) -> io::Result<(Arc<ClientConfig>, Seen)> {
    let provider = Arc::new(ring::default_provider());
    let seen = Seen::default();
    let verifier = Pinned { pin, seen: Arc::clone(&seen), provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // Each connection shows its certificate: a resumed session would be trusted by an earlier look.
    config.resumption = rustls::client::Resumption::disabled();
    Ok((Arc::new(config), seen))
}

fn tcp(addrs: impl IntoIterator<Item = std::net::SocketAddr>, timeout: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + timeout;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for addr in addrs {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
        match TcpStream::connect_timeout(&addr, left) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn handshake(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    mut socket: TcpStream,
    timeout: Duration,
) -> io::Result<(ClientConnection, TcpStream)> {
    let mut tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    Ok((tls, socket))
}

/// Makes ureq's connections to one host.
#[derive(Debug)]
pub(super) struct HostConnector {
    to: To,
    gone: Arc<AtomicBool>,
}

#[derive(Debug)]
enum To {
    Tls(Fingerprint),
    Local(PathBuf),
}

impl HostConnector {
    pub(super) fn tls(pin: Fingerprint, gone: Arc<AtomicBool>) -> Self {
        Self { to: To::Tls(pin), gone }
    }

    pub(super) fn local(path: PathBuf, gone: Arc<AtomicBool>) -> Self {
        Self { to: To::Local(path), gone }
    }

    fn open(&self, details: &ConnectionDetails<'_>) -> Result<Link, Connecting> {
        match &self.to {
            To::Local(path) => {
                let socket = UnixStream::connect(path)
                    .map_err(|source| Connecting::Failed { remedy: LOCAL_REMEDY, source })?;
                Ok(Link::Local(socket))
            }
            To::Tls(pin) => {
                let timeout = details.timeout.not_zero().map_or(CONNECT, |t| *t);
                let socket = tcp(details.addrs.iter().copied(), timeout)
                    .map_err(|source| Connecting::Failed { remedy: TCP_REMEDY, source })?;
                let wrong = |source| Connecting::Failed { remedy: TLS_REMEDY, source };
                let (config, seen) = tls_config(Some(*pin)).map_err(wrong)?;
                let name = server_name(details.uri.host().unwrap_or_default()).map_err(wrong)?;
                match handshake(config, name, socket, timeout) {
                    Ok((tls, socket)) => Ok(Link::Tls(Box::new(tls), socket)),
                    Err(e) => match seen.lock().ok().and_then(|seen| *seen) {
                        Some(found) if found != *pin => {
                            Err(Connecting::Mismatch(Mismatch { expected: *pin, found }))
                        }
                        _ => Err(wrong(e)),
                    },
                }
            }
        }
    }
}

impl Connector<()> for HostConnector {
    type Out = HostTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<HostTransport>, ureq::Error> {
        let link = self.open(details).map_err(|e| ureq::Error::Other(Box::new(e)))?;
        let buffers =
            LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(HostTransport { link, buffers, gone: Arc::clone(&self.gone) }))
    }
}

/// The local socket has no name to look up.
#[derive(Debug)]
pub(super) struct NoLookup;

impl Resolver for NoLookup {
    fn resolve(
        &self,
        _: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addrs = self.empty();
        addrs.push(std::net::SocketAddr::from(([127, 0, 0, 1], 80)));
        Ok(addrs)
    }
}

#[derive(Debug)]
enum Link {
    Local(UnixStream),
    Tls(Box<ClientConnection>, TcpStream),
}

impl Link {
    fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Local(socket) => {
                socket.set_read_timeout(timeout).and_then(|()| socket.set_write_timeout(timeout))
            }
            Self::Tls(_, socket) => {
                socket.set_read_timeout(timeout).and_then(|()| socket.set_write_timeout(timeout))
            }
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Local(socket) => socket.write_all(bytes),
            Self::Tls(tls, socket) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let taken = tls.writer().write(rest)?;
                    rest = rest.get(taken..).unwrap_or_default();
                    while tls.wants_write() {
                        tls.write_tls(socket)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Reads without writing first, so that an answer is found even when the peer has stopped reading.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Local(socket) => socket.read(buf),
            Self::Tls(tls, socket) => loop {
                match tls.reader().read(buf) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    other => return other,
                }
                // At the end of the stream this takes in nothing, and the reader above then says whether it was a proper one.
                tls.read_tls(socket)?;
                tls.process_new_packets().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            },
        }
    }

    /// Whether the peer has neither closed nor sent what was not asked for.
    fn idle(&mut self) -> io::Result<bool> {
        match self {
            Self::Local(socket) => {
                socket.set_nonblocking(true)?;
                let read = socket.read(&mut [0]);
                socket.set_nonblocking(false)?;
                Ok(read.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock))
            }
            Self::Tls(tls, socket) => {
                socket.set_nonblocking(true)?;
                let idle = loop {
                    match tls.read_tls(socket) {
                        Ok(0) => break false,
                        // Session tickets come by themselves.
                        Ok(_) => match tls.process_new_packets() {
                            Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() => {
                            }
                            _ => break false,
                        },
                        Err(e) => break e.kind() == io::ErrorKind::WouldBlock,
                    }
                };
                socket.set_nonblocking(false)?;
                Ok(idle)
            }
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct HostTransport {
    link: Link,
    buffers: LazyBuffers,
    gone: Arc<AtomicBool>,
}

fn timed_out(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl Transport for HostTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        if self.gone.load(Ordering::Relaxed) {
            return Ok(());
        }
        let timeout = timeout.for_write();
        self.link.set_timeouts(timeout.not_zero().map(|t| *t))?;
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        match self.link.write_all(output) {
            Ok(()) => Ok(()),
            // The host closed before it had everything: most often it refused, and its answer waits to be read.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                self.gone.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(e) if timed_out(&e) => Err(ureq::Error::Timeout(timeout.reason)),
            Err(e) => Err(e.into()),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        self.link.set_timeouts(timeout.not_zero().map(|t| *t))?;
        let input = self.buffers.input_append_buf();
        loop {
            match self.link.read(input) {
                Ok(amount) => {
                    self.buffers.input_appended(amount);
                    return Ok(amount > 0);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if timed_out(&e) => return Err(ureq::Error::Timeout(timeout.reason)),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn is_open(&mut self) -> bool {
        !self.gone.load(Ordering::Relaxed) && self.link.idle().unwrap_or(false)
    }

    fn is_tls(&self) -> bool {
        matches!(self.link, Link::Tls(..))
    }
}
