//! The firmware files that the selected drivers name, found in the firmware packages and compressed as the kernel takes them.

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use lzma_rust2::{CheckType, XzOptions, XzWriter};
use serde::{Deserialize, Serialize};

use crate::deb::Files;

/// Beyond this, one file is left out: a driver that names more has a smaller or older file, or is not worth it.
pub const LARGEST_FILE: usize = 4 << 20;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firmware {
    /// Compressed files by path below `lib/firmware/`, ending in `.xz`.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Names that no package has, or that are left out by the rule or for their size.
    pub left_out: Vec<String>,
}

/// Looks for `names` in `packages`. A name with a `*` takes all that match, as drivers with many steppings declare it.
pub fn collect<'a>(names: impl IntoIterator<Item = &'a str>, packages: &[&Files]) -> io::Result<Firmware> {
    let mut out = Firmware::default();
    for name in names {
        let mut found = false;
        for files in packages {
            for path in matching(files, name) {
                let Some(bytes) = files.get(&path) else { continue };
                if bytes.len() > LARGEST_FILE {
                    continue;
                }
                found = true;
                let short = path.strip_prefix("lib/firmware/").unwrap_or(&path);
                let key = format!("{short}.xz");
                if let std::collections::btree_map::Entry::Vacant(place) = out.files.entry(key) {
                    place.insert(compress(bytes)?);
                }
            }
        }
        if !found {
            out.left_out.push(name.to_owned());
        }
    }
    Ok(out)
}

fn matching(files: &Files, name: &str) -> Vec<String> {
    let path = format!("lib/firmware/{name}");
    match path.split_once('*') {
        None => vec![path],
        Some((start, end)) => files
            .below(start)
            .filter(|path| path.len() >= start.len() + end.len() && path.ends_with(end))
            .map(str::to_owned)
            .collect(),
    }
}

/// Compresses to xz as the kernel takes it: its decoder knows CRC32, and a small window is enough.
pub fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut options = XzOptions::with_preset(6);
    options.set_check_sum_type(CheckType::Crc32);
    options.lzma_options.dict_size = 1 << 20;
    let mut writer = XzWriter::new(Vec::new(), options)?;
    writer.write_all(bytes)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deb::Entry;
    use std::io::Read;

    #[test]
    fn named_files_are_found_through_links_and_patterns() {
        let files = Files(BTreeMap::from([
            ("lib/firmware/i/ice-1.pkg".into(), Entry::File(vec![7; 5000])),
            ("lib/firmware/i/ice.pkg".into(), Entry::Link("ice-1.pkg".into())),
            ("lib/firmware/q/a.bin".into(), Entry::File(b"a".to_vec())),
            ("lib/firmware/q/b.bin".into(), Entry::File(b"b".to_vec())),
        ]));
        let got = collect(["i/ice.pkg", "q/*.bin", "none.bin"], &[&files]).expect("collect");
        assert_eq!(got.files.keys().collect::<Vec<_>>(), ["i/ice.pkg.xz", "q/a.bin.xz", "q/b.bin.xz"]);
        assert_eq!(got.left_out, ["none.bin"]);
        let mut back = Vec::new();
        lzma_rust2::XzReader::new(&got.files["i/ice.pkg.xz"][..], false).read_to_end(&mut back).expect("xz");
        assert_eq!(back, vec![7; 5000]);
    }
}
