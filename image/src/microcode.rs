//! Processor updates: Intel's and AMD's files made into the two blobs that the kernel looks for in front of the initramfs.

use std::collections::BTreeMap;

use crate::deb::Files;

/// Where the kernel looks for Intel's updates.
pub const INTEL: &str = "kernel/x86/microcode/GenuineIntel.bin";
/// Where the kernel looks for AMD's updates.
pub const AMD: &str = "kernel/x86/microcode/AuthenticAMD.bin";

/// Bytes of the header of an Intel update.
const HEADER: usize = 48;
/// What `data size` 0 stands for: updates of before 2003 have a fixed size.
const OLD_TOTAL: usize = 2048;

/// One Intel update: for which processors, and which revision it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    signature: u32,
    platforms: u32,
}

/// All Intel updates of the package in one blob. Packages repeat the same update in several files, and keep older revisions
/// beside newer ones: each processor keeps its newest alone.
pub fn intel(package: &Files) -> Vec<u8> {
    let mut newest: BTreeMap<Key, (u32, Vec<u8>)> = BTreeMap::new();
    for path in package.below("lib/firmware/intel-ucode/") {
        for (key, revision, bytes) in updates(package.get(path).unwrap_or_default()) {
            // Processors without VT-x cannot run this product; family 15 is the last of them.
            if family(key.signature) == 15 {
                continue;
            }
            match newest.get(&key) {
                Some((have, _)) if (*have as i32) >= (revision as i32) => {}
                _ => {
                    newest.insert(key, (revision, bytes.to_vec()));
                }
            }
        }
    }
    newest.into_values().flat_map(|(_, bytes)| bytes).collect()
}

/// All AMD containers of the package, one after the other.
pub fn amd(package: &Files) -> Vec<u8> {
    package
        .below("lib/firmware/amd-ucode/")
        .filter(|path| path.ends_with(".bin"))
        .flat_map(|path| package.get(path).unwrap_or_default())
        .copied()
        .collect()
}

fn family(signature: u32) -> u32 {
    (signature >> 8) & 0xf
}

fn updates(mut file: &[u8]) -> Vec<(Key, u32, &[u8])> {
    let mut all = Vec::new();
    while let Some(header) = file.get(..HEADER) {
        let word =
            |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        if word(0) != 1 {
            break;
        }
        let total = match word(28) {
            0 => OLD_TOTAL,
            _ => word(32) as usize,
        };
        // A total below the header would never advance.
        let Some((update, rest)) = (total >= HEADER).then(|| file.split_at_checked(total)).flatten() else {
            break;
        };
        all.push((Key { signature: word(12), platforms: word(24) }, word(4), update));
        file = rest;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deb::Entry;

    fn update(signature: u32, revision: u32, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + payload];
        for (at, value) in [
            (0, 1),
            (4, revision),
            (12, signature),
            (24, 1),
            (28, payload as u32),
            (32, (HEADER + payload) as u32),
        ] {
            bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        bytes
    }

    #[test]
    fn repeats_and_older_revisions_are_dropped() {
        let (old, new, other) = (update(0x50654, 1, 16), update(0x50654, 2, 32), update(0x806f8, 9, 16));
        let files = Files(BTreeMap::from([
            ("lib/firmware/intel-ucode/a".into(), Entry::File([new.clone(), other.clone()].concat())),
            ("lib/firmware/intel-ucode/b".into(), Entry::File(old)),
            ("lib/firmware/intel-ucode/c".into(), Entry::File(other.clone())),
            ("lib/firmware/intel-ucode/d".into(), Entry::File(update(0xf49, 1, 16))),
        ]));
        assert_eq!(intel(&files), [new, other].concat());
    }

    proptest::proptest! {
        #[test]
        fn random_bytes_are_survived(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..512)) {
            let _ = updates(&bytes);
            if let Some(start) = bytes.get_mut(..4) {
                start.copy_from_slice(&1_u32.to_le_bytes());
            }
            for (_, _, update) in updates(&bytes) {
                proptest::prop_assert!(update.len() >= HEADER);
            }
        }
    }
}
