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
    resolve: Resolve,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    kind: Option<String>,
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

/// Entries for all crates that are linked into `programs`, of the workspace at `tree`.
pub fn linked(tree: &Path, programs: &[&str]) -> Result<Vec<Entry>, CrateError> {
    let mut cargo = tools::command("cargo");
    cargo
        .current_dir(tree)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", PLATFORM]);
    let json = tools::output(cargo).map_err(|source| CrateError::Cargo { tree: tree.to_owned(), source })?;
    let metadata: Metadata = serde_json::from_slice(&json)?;
    let path = tree.join("Cargo.lock");
    let lock: CargoLock = std::fs::read_to_string(&path)
        .map_err(Into::into)
        .and_then(|text| toml::from_str(&text).map_err(Into::into))
        .map_err(|source| CrateError::LockFile { path, source })?;
    Ok(entries(&metadata, &lock, programs))
}

fn entries(metadata: &Metadata, lock: &CargoLock, programs: &[&str]) -> Vec<Entry> {
    let packages: BTreeMap<&str, &Package> = metadata.packages.iter().map(|p| (p.id.as_str(), p)).collect();
    let nodes: BTreeMap<&str, &Node> = metadata.resolve.nodes.iter().map(|n| (n.id.as_str(), n)).collect();
    let ours: BTreeSet<&str> = metadata.workspace_members.iter().map(String::as_str).collect();
    let sums: BTreeMap<(&str, &str), &str> = lock
        .package
        .iter()
        .filter_map(|p| Some(((p.name.as_str(), p.version.as_str()), p.checksum.as_deref()?)))
        .collect();

    // By crate, the programs that have it.
    let mut users: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for program in programs {
        let builds = |target: &Target| target.name == *program && target.kind.iter().any(|kind| kind == "bin");
        let roots = ours.iter().filter(|id| packages.get(*id).is_some_and(|p| p.targets.iter().any(builds)));
        let mut open: Vec<&str> = roots.copied().collect();
        while let Some(id) = open.pop() {
            if !users.entry(id).or_default().insert(program) {
                continue;
            }
            let Some(node) = nodes.get(id) else { continue };
            // Build scripts and procedural macros run at build time; dependencies of tests are not there at all.
            let normal = |dep: &&Dependency| dep.dep_kinds.iter().any(|kind| kind.kind.is_none());
            let linked = |dep: &&Dependency| {
                packages.get(dep.pkg.as_str()).is_some_and(|p| !p.targets.iter().any(|t| t.kind.contains(&"proc-macro".into())))
            };
            open.extend(node.deps.iter().filter(normal).filter(linked).map(|dep| dep.pkg.as_str()));
        }
    }

    let mut all: Vec<Entry> = users
        .iter()
        .filter(|(id, _)| !ours.contains(*id))
        .filter_map(|(id, programs)| packages.get(id).map(|package| (package, programs)))
        .map(|(package, programs)| Entry {
            kind: Kind::Crate,
            name: package.name.clone(),
            version: package.version.clone(),
            licence: package.license.clone().unwrap_or_else(|| "see its licence file".into()).replace('/', " OR "),
            takes: format!("linked into {}", programs.iter().copied().collect::<Vec<_>>().join(", ")),
            sha256: sums.get(&(package.name.as_str(), package.version.as_str())).copied().unwrap_or_default().to_owned(),
            source: Source {
                name: package.name.clone(),
                version: package.version.clone(),
                place: "crates.io, under this name and version".into(),
                built_using: String::new(),
            },
        })
        .collect();
    all.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    all
}

/// The build machine's C library, which static programs have in them.
pub fn c_library() -> Entry {
    let mut query = tools::command("dpkg-query");
    query.args(["-W", "-f", "${Version}\n${source:Package}\n${source:Version}\n", "libc6-dev"]);
    let text = tools::output(query).map(|out| String::from_utf8_lossy(&out).into_owned()).unwrap_or_default();
    let mut fields = text.lines().map(str::to_owned);
    let mut field = |otherwise: &str| fields.next().filter(|f| !f.is_empty()).unwrap_or_else(|| otherwise.into());
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
    let said = tools::output(rustc).map(|out| String::from_utf8_lossy(&out).trim().to_owned()).unwrap_or_default();
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
        let find = |name: &str| all.iter().find(|entry| entry.name == name);
        assert_eq!(find("gpt").expect("gpt").sha256.len(), 64);
        assert!(find("proptest").is_none(), "a dependency of tests is not in a program");
        assert!(find("serde_derive").is_none(), "a procedural macro is not in a program");
        assert!(find("keelson-image").is_none(), "our own crates are the program");
    }
}
