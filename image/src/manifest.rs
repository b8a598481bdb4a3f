//! The manifest: every part of the image with version, licence, source and hash; in the image and beside it.

use serde::{Deserialize, Serialize};

use crate::lock::Locked;
use crate::parts::Part;
use crate::wants::Want;

/// Version of this format.
pub const SCHEMA: u32 = 1;

/// The whole document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub schema: u32,
    /// The product.
    pub product: String,
    /// Its version.
    pub version: String,
    /// The kernel's version, as `uname -r` says it.
    pub kernel_release: String,
    /// The command line in the UKI.
    pub command_line: String,
    /// What it is made of.
    pub parts: Vec<Entry>,
    /// Firmware that a driver may ask for and that is not in the image.
    pub firmware_left_out: Vec<String>,
    /// The finished files; empty in the image, which cannot hold its own hash.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artefacts: Vec<Artefact>,
}

/// What kind of part it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A package of Debian.
    DebianPackage,
    /// A program of this product.
    Program,
    /// A Rust crate linked into a program.
    Crate,
    /// A library of the build machine linked into a program.
    Library,
    /// A file that was added for a test.
    Added,
}

/// One part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What kind of part it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SPDX expression.
    pub licence: String,
    /// What is taken, or which programs have it.
    pub takes: String,
    /// SHA-256: of the package file, of the program, or of the crate's archive.
    pub sha256: String,
    /// Where it is from.
    pub source: Source,
}

/// Where a part is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Name of the source package, crate or tree.
    pub name: String,
    /// Its version.
    pub version: String,
    /// How to get it.
    #[serde(rename = "where")]
    pub place: String,
    /// Further source packages that went into it, as Debian's `Built-Using` has them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub built_using: String,
}

/// A finished file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    /// File name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256.
    pub sha256: String,
}

/// The entry of a Debian package.
pub fn debian(want: &Want, part: &Part) -> Entry {
    let Locked { package, version, suite, sha256, source, source_version, built_using, .. } = &part.locked;
    Entry {
        kind: Kind::DebianPackage,
        name: package.clone(),
        version: version.clone(),
        licence: want.licence.clone(),
        takes: want.takes.clone(),
        sha256: sha256.clone(),
        source: Source {
            name: source.clone(),
            version: source_version.clone(),
            place: format!(
                "Debian source package, suite {suite}: `apt-get source {source}={source_version}` with that suite in apt's \
                 sources; once replaced there, Debian's snapshot archive has it under the same name and version"
            ),
            built_using: built_using.clone(),
        },
    }
}

impl Manifest {
    /// The document as text.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}
