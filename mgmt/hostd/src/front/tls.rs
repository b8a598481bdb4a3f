//! TLS 1.3 and nothing older, with the ring provider named rather than installed.

use std::sync::Arc;

use rustls::ServerConfig;

use super::certificate::Certificate;

/// The configuration of every TLS connection.
pub(crate) fn config(certificate: Certificate) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.certificate], certificate.key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
