//! What is linked into our own programs: Rust crates as cargo resolved them, and the C library of the build machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::manifest::{Entry, Kind, Source};
use crate::tools::{self, ToolError};

/// The platform that the programs are built for; crates for others are not in them.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Why the crates are not known.
#[derive(Debug, thiserror::Error)]
pub enum CrateError {
    /// cargo failed.
    #[error("cargo cannot tell what the programs in {} are made of", .tree.display())]
    Cargo {
        /// The source tree.
        tree: PathBuf,
        /// What cargo said.
        #[source]
        source: ToolError,
    },
    /// cargo's answer has another shape.
    #[error("cargo's metadata cannot be read")]
    Metadata(#[from] serde_json::Error),
    /// The file of exact versions is missing or damaged.
    #[error("{} cannot be read", .path.display())]
    LockFile {
        /// Where it is looked for.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

#[derive(Deserialize)]
struct CargoLock {
    package: Vec<LockedCrate>,
}

#[derive(Deserialize)]
struct LockedCrate {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// A crate that is linked in.
#[derive(Debug, Clone)]
pub struct Linked {
    /// What the manifest says of it.
    pub entry: Entry,
    /// Its source on this machine, where its terms are.
    pub dir: PathBuf,
}

/// All crates that are linked into `programs`, of the workspace at `tree`.
///
/// `cargo tree` says which crates a program has with the features that are on, without build scripts, procedural macros and what
/// tests need (`cargo metadata` lists more than is built); `cargo metadata` says what their terms are and where.
pub fn linked(tree: &Path, programs: &[&str]) -> Result<Vec<Linked>, CrateError> {
    let metadata: Metadata = serde_json::from_slice(&cargo(
        tree,
        &["metadata", "--format-version", "1", "--filter-platform", PLATFORM],
    )?)?;
    let path = tree.join("Cargo.lock");
    let lock: CargoLock = std::fs::read_to_string(&path)
        .map_err(Into::into)
        .and_then(|text| toml::from_str(&text).map_err(Into::into))
        .map_err(|source| CrateError::LockFile { path, source })?;

    // By name and version, the programs that have it.
    let mut users: BTreeMap<(String, String), BTreeSet<&str>> = BTreeMap::new();
    for program in programs {
        let builds =
            |target: &Target| target.name == *program && target.kind.iter().any(|kind| kind == "bin");
        let ours =
            metadata.packages.iter().filter(|package| metadata.workspace_members.contains(&package.id));
        for package in ours.filter(|package| package.targets.iter().any(builds)) {
            let listed = cargo(
                tree,
                &[
                    "tree",
                    "-p",
                    &package.name,
                    "--target",
                    PLATFORM,
                    "--edges",
                    "normal,no-proc-macro",
                    "--prefix",
                    "none",
                    "--format",
                    "{p}",
                ],
            )?;
            for key in String::from_utf8_lossy(&listed).lines().filter_map(listed_crate) {
                users.entry(key).or_default().insert(program);
            }
        }
    }
    Ok(entries(&metadata, &lock, &users))
}

/// Runs cargo without network and without changing the lock file.
fn cargo(tree: &Path, args: &[&str]) -> Result<Vec<u8>, CrateError> {
    let mut cargo = tools::command("cargo");
    cargo.current_dir(tree).args(args).args(["--locked", "--offline"]);
    tools::output(cargo).map_err(|source| CrateError::Cargo { tree: tree.to_owned(), source })
}

/// A line of `cargo tree`: `name v1.2.3`, with a path behind it for our own crates, and `(*)` for repeats.
fn listed_crate(line: &str) -> Option<(String, String)> {
    let mut words = line.split_whitespace();
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    match words.next() {
        Some(word) if word.starts_with("(/") => None,
        _ => Some((name.to_owned(), version.to_owned())),
    }
}

fn entries(
    metadata: &Metadata,
    lock: &CargoLock,
    users: &BTreeMap<(String, String), BTreeSet<&str>>,
) -> Vec<Linked> {
    let sum = |package: &Package| {
        let same = |locked: &&LockedCrate| locked.name == package.name && locked.version == package.version;
        lock.package.iter().find(same).and_then(|locked| locked.checksum.clone()).unwrap_or_default()
    };
    let mut all: Vec<Linked> = metadata
        .packages
        .iter()
        .filter(|package| !metadata.workspace_members.contains(&package.id))
        .filter_map(|package| Some((package, users.get(&(package.name.clone(), package.version.clone()))?)))
        .map(|(package, programs)| Linked {
            entry: Entry {
                kind: Kind::Crate,
                name: package.name.clone(),
                version: package.version.clone(),
                // Old crates write a slash for "or".
                licence: package
                    .license
                    .as_deref()
                    .unwrap_or("see its licence file")
                    .replace('/', " OR ")
                    .replace("  ", " "),
                takes: format!("linked into {}", programs.iter().copied().collect::<Vec<_>>().join(", ")),
                sha256: sum(package),
                source: Source {
                    name: package.name.clone(),
                    version: package.version.clone(),
                    place: "crates.io, under this name and version".into(),
                    built_using: String::new(),
                },
            },
            dir: package.manifest_path.parent().unwrap_or(Path::new("/")).to_owned(),
        })
        .collect();
    all.sort_by(|a, b| (&a.entry.name, &a.entry.version).cmp(&(&b.entry.name, &b.entry.version)));
    all
}

/// The build machine's C library, which static programs have in them.
pub fn c_library() -> Entry {
    let mut query = tools::command("dpkg-query");
    query.args(["-W", "-f", "${Version}\n${source:Package}\n${source:Version}\n", "libc6-dev"]);
    let text = tools::output(query).map(|out| String::from_utf8_lossy(&out).into_owned()).unwrap_or_default();
    let mut fields = text.lines().map(str::to_owned);
    let mut field =
        |otherwise: &str| fields.next().filter(|f| !f.is_empty()).unwrap_or_else(|| otherwise.into());
    let (version, source, source_version) = (field("unknown"), field("glibc"), field("unknown"));
    Entry {
        kind: Kind::Library,
        name: "libc6-dev".into(),
        version,
        licence: "LGPL-2.1-or-later".into(),
        takes: "the C library, linked into every program of this product".into(),
        sha256: String::new(),
        source: Source {
            place: format!(
                "source package of the build machine's distribution: `apt-get source {source}={source_version}`; this \
                 product's own source is complete, so that every program can be linked anew with another version of it"
            ),
            name: source,
            version: source_version,
            built_using: String::new(),
        },
    }
}

/// Rust's own libraries, by the version that cargo's compiler names.
pub fn rust_libraries() -> Entry {
    let mut rustc = tools::command("rustc");
    rustc.arg("--version");
    let said =
        tools::output(rustc).map(|out| String::from_utf8_lossy(&out).trim().to_owned()).unwrap_or_default();
    let version = said.split_whitespace().nth(1).unwrap_or("unknown").to_owned();
    Entry {
        kind: Kind::Library,
        name: "rust-std".into(),
        version: version.clone(),
        licence: "MIT OR Apache-2.0".into(),
        takes: "Rust's libraries, linked into every program of this product".into(),
        sha256: String::new(),
        source: Source { name: "rust".into(), version, place: said, built_using: String::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_trees_own_program_lists_its_crates() {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let all = linked(&tree, &["keelson-image"]).expect("metadata");
        let find = |name: &str| all.iter().map(|linked| &linked.entry).find(|entry| entry.name == name);
        assert_eq!(find("gpt").expect("gpt").sha256.len(), 64);
        assert!(find("proptest").is_none(), "a dependency of tests is not in a program");
        assert!(find("serde_derive").is_none(), "a procedural macro is not in a program");
        assert!(find("keelson-image").is_none(), "our own crates are the program");
    }
}
