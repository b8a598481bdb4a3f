//! Frozen layouts: what each kind of section looks like, as bytes in the tree. A changed byte is a new version, never a new golden file.

use std::path::PathBuf;

use crate::devices::saved::Versioned;

fn path(kind: &str, version: u16) -> PathBuf {
    let name = format!("{kind}.{version}.hex");
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", &name].iter().collect()
}

fn hex(bytes: &[u8]) -> String {
    let line = |part: &[u8]| part.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n";
    bytes.chunks(32).map(line).collect()
}

/// The bytes of a golden file.
pub(crate) fn bytes(kind: &str, version: u16) -> Vec<u8> {
    let path = path(kind, version);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| {
        panic!("{}: {e} (a new version's file is written when KEELSON_GOLDEN=write)", path.display())
    });
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// Checks that `state`, a fixed one, has the golden bytes of its version, and that they are read back.
pub(crate) fn check<S: Versioned>(kind: &str, state: &S) {
    let encoded = state.encode(S::VERSION).unwrap();
    let path = path(kind, S::VERSION);
    if std::env::var("KEELSON_GOLDEN").as_deref() == Ok("write") && !path.exists() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, hex(&encoded)).unwrap();
    }
    let golden = bytes(kind, S::VERSION);
    assert_eq!(hex(&encoded), hex(&golden), "{kind}: the layout of version {} has changed", S::VERSION);
    assert_eq!(S::decode(S::VERSION, &golden).unwrap().encode(S::VERSION).unwrap(), golden);
}
