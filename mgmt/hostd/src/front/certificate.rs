//! The host's certificate: made at first boot, kept, known by its fingerprint.

use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SanType, date_time_ymd,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use crate::conditions::Conditions;
use crate::store::{self, StoreError};

/// How long it is good, in years. Clients trust its fingerprint, not its date.
const YEARS: i16 = 10;

/// A certificate with its key.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("the certificate could not be made")]
    Make(#[from] rcgen::Error),
    #[error("{} is no certificate with its key", .0.display())]
    Unusable(std::path::PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Certificate {
    /// Reads the certificate in `dir`, or makes one. One that cannot be kept still serves; that is a condition.
    pub(crate) fn open(
        dir: &Path,
        hostname: &str,
        addresses: &[IpAddr],
        conditions: &Conditions,
    ) -> Result<Self, CertificateError> {
        let (cert_file, key_file) = (dir.join("cert.pem"), dir.join("key.pem"));
        if cert_file.exists() && key_file.exists() {
            match Self::read(&cert_file, &key_file) {
                Ok(found) => return Ok(found),
                Err(e) => conditions.set(
                    "certificate-replaced",
                    format!("{}; the host has a new certificate", keelson_init_control::logging::chain(&e)),
                    "clients that trusted the old one must be shown the new fingerprint",
                ),
            }
        }
        let (certificate_pem, key_pem) = make(hostname, addresses)?;
        // The key first: a certificate without its key is worse than a key without its certificate.
        let kept = store::write(&key_file, key_pem.as_bytes(), 0o600, false)
            .and_then(|()| store::write(&cert_file, certificate_pem.as_bytes(), 0o644, false));
        if let Err(e) = kept {
            conditions.set("state-not-writable", keelson_init_control::logging::chain(&e), "free space on the state partition or repair it; what is changed now is lost at the next start");
        }
        Self::from_pem(certificate_pem.as_bytes(), key_pem.as_bytes())
            .map_err(|e| CertificateError::Unusable(cert_file, e))
    }

    fn read(cert_file: &Path, key_file: &Path) -> Result<Self, CertificateError> {
        let read =
            |path: &Path| std::fs::read(path).map_err(|e| CertificateError::Unusable(path.into(), e.into()));
        Self::from_pem(&read(cert_file)?, &read(key_file)?)
            .map_err(|e| CertificateError::Unusable(cert_file.into(), e))
    }

    fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let certificate = CertificateDer::from_pem_slice(certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key)?;
        // Refuses a key that is another certificate's.
        CertifiedKey::from_der(
            vec![certificate.clone()],
            key.clone_key(),
            &rustls::crypto::ring::default_provider(),
        )?;
        Ok(Self { certificate, key })
    }

    /// Its SHA-256, as hexadecimal pairs with colons.
    pub(crate) fn fingerprint(&self) -> String {
        let pairs: Vec<String> =
            Sha256::digest(&self.certificate).iter().map(|b| format!("{b:02X}")).collect();
        pairs.join(":")
    }
}

/// A certificate and its key, as PEM.
fn make(hostname: &str, addresses: &[IpAddr]) -> Result<(String, String), CertificateError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(vec![hostname.to_owned()])?;
    params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
    params.distinguished_name.push(DnType::CommonName, hostname);
    params.distinguished_name.push(DnType::OrganizationName, "Keelson host");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (begin, end) = validity(jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::now()).date());
    params.not_before =
        date_time_ymd(begin.year().into(), begin.month().unsigned_abs(), begin.day().unsigned_abs());
    params.not_after = date_time_ymd(end.year().into(), end.month().unsigned_abs(), end.day().unsigned_abs());
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// From the day before (clocks differ) for [`YEARS`]. A server whose clock was lost says a day long ago; then it is good from
/// that day on, and for as long beyond the year this was written in.
fn validity(today: jiff::civil::Date) -> (jiff::civil::Date, jiff::civil::Date) {
    let written = jiff::civil::date(2026, 1, 1);
    let begin = today.yesterday().unwrap_or(today);
    let from = today.max(written);
    let end = from.checked_add(jiff::Span::new().years(YEARS)).unwrap_or(jiff::civil::Date::MAX);
    (begin, end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_made_once_and_its_key_is_nobody_elses_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let (tls, conditions) = (dir.path().join("tls"), Conditions::default());
        let address = IpAddr::from([192, 0, 2, 7]);
        let first = Certificate::open(&tls, "esx7.example", &[address], &conditions).unwrap();
        let second = Certificate::open(&tls, "renamed", &[], &conditions).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert_eq!((first.fingerprint().len(), first.fingerprint().matches(':').count()), (95, 31));
        assert_eq!(std::fs::metadata(tls.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
        let (_, parsed) = x509_parser::parse_x509_certificate(&first.certificate).unwrap();
        let names = format!("{:?}", parsed.subject_alternative_name().unwrap().unwrap().value.general_names);
        assert!(
            names.contains("esx7.example") && names.contains("[c0, 00, 02, 07]")
                || names.contains("192, 0, 2, 7"),
            "{names}"
        );
        assert!(conditions.all().is_empty());
        // A key of another certificate, or rubbish, is replaced aloud.
        let other = make("other", &[]).unwrap();
        for key in [other.1.as_str(), "rubbish"] {
            std::fs::write(tls.join("key.pem"), key).unwrap();
            let replaced = Certificate::open(&tls, "esx7", &[], &conditions).unwrap();
            assert_ne!(replaced.fingerprint(), first.fingerprint());
            assert_eq!(conditions.all()[0].code, "certificate-replaced");
        }
    }

    #[test]
    fn a_lost_clock_still_makes_a_certificate_that_lasts() {
        let date = jiff::civil::date;
        assert_eq!(validity(date(2027, 3, 1)), (date(2027, 2, 28), date(2037, 3, 1)));
        assert_eq!(validity(date(1970, 1, 1)), (date(1969, 12, 31), date(2036, 1, 1)));
    }
}
