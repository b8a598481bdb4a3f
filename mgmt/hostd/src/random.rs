//! Random words from the kernel's generator.

use std::fmt::Write;
use std::io;

/// `N` random bytes.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| io::Error::other(format!("the kernel gave no random bytes: {e}")))?;
    Ok(bytes)
}

/// `N` random bytes as hexadecimal digits.
pub(crate) fn hex<const N: usize>() -> io::Result<String> {
    Ok(to_hex(&bytes::<N>()?))
}

/// Bytes as hexadecimal digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
