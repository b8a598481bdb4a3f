//! The SHA-256 fingerprint of a certificate.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// The SHA-256 of a certificate's DER form. Written as hexadecimal pairs with colons, as on a host's console.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// A text that is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no SHA-256 fingerprint: 32 pairs of hexadecimal digits are one, with or without colons")]
pub struct FingerprintError(pub String);

impl Fingerprint {
    /// The fingerprint of a certificate in DER form.
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(":")?;
            }
            write!(f, "{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || FingerprintError(text.into());
        let trimmed = text.trim();
        let digits = trimmed.strip_prefix("sha256:").or(trimmed.strip_prefix("SHA256:")).unwrap_or(trimmed);
        let digits: Vec<u8> = digits.bytes().filter(|b| *b != b':').collect();
        if digits.len() != 64 {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |b: &u8| (*b as char).to_digit(16);
            let (Some(high), Some(low)) = (pair.first().and_then(nibble), pair.last().and_then(nibble))
            else {
                return Err(wrong());
            };
            *byte = u8::try_from(high * 16 + low).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes: [u8; 32]) {
            let print = Fingerprint(bytes);
            let text = print.to_string();
            prop_assert_eq!(text.parse(), Ok(print));
            prop_assert_eq!(text.to_lowercase().replace(':', "").parse(), Ok(print));
            prop_assert_eq!(format!("sha256:{text}").parse(), Ok(print));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = text.parse::<Fingerprint>();
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for wrong in ["", "AA", "zz", &"AA:".repeat(31), &"G".repeat(64), &"é".repeat(32)] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }
}
