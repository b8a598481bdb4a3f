//! The source tree keeps its own rules: which crate may know which, where `unsafe` may stand, the lowest Rust, licences.
#![allow(clippy::unwrap_used, clippy::panic)] // a test ends by panicking

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(top())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn packages(metadata: &Value) -> &Vec<Value> {
    metadata["packages"].as_array().unwrap()
}

fn is_ours(package: &Value) -> bool {
    package["source"].is_null()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// What each crate of the workspace may depend on, of the workspace. Every daemon has a `control` beside it: the words it
/// understands, and a client. Nobody depends on a daemon.
const ARROWS: &[(&str, &[&str])] = &[
    ("keelson-wire", &[]),
    ("keelson-init-control", &["keelson-wire"]),
    ("keelson-vmm-cpu", &[]),
    ("keelson-vmm-control", &["keelson-wire", "keelson-vmm-cpu"]),
    ("keelson-netcfg-control", &["keelson-wire"]),
    ("keelson-api", &[]),
    ("keelson-init", &["keelson-wire", "keelson-init-control"]),
    ("keelson-vmm", &["keelson-wire", "keelson-vmm-control", "keelson-vmm-cpu", "keelson-init-control"]),
    ("keelson-netcfg", &["keelson-wire", "keelson-netcfg-control", "keelson-init-control"]),
    (
        "keelson-hostd",
        &[
            "keelson-wire",
            "keelson-api",
            "keelson-init-control",
            "keelson-netcfg-control",
            "keelson-vmm-control",
            "keelson-vmm-cpu",
        ],
    ),
    ("keelson-dcui", &["keelson-api", "keelson-init-control", "keelson-netcfg-control"]),
    ("keelctl", &["keelson-api"]),
    ("keelson-image", &[]),
    ("keelson-lab", &["keelson-api", "keelson-vmm-control"]),
    ("keelson-system-tests", &[]),
];

#[test]
fn crates_know_only_what_they_may() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let ours: BTreeSet<&str> =
        packages(&metadata).iter().filter(|p| is_ours(p)).map(|p| text(p, "name")).collect();
    assert_eq!(
        ours,
        allowed.keys().copied().collect(),
        "the workspace's members and the list of arrows differ"
    );
    for package in packages(&metadata).iter().filter(|p| is_ours(p)) {
        let name = text(package, "name");
        for dependency in package["dependencies"].as_array().unwrap() {
            // What a test needs is no arrow of the shipped thing.
            let on = text(dependency, "name");
            if text(dependency, "kind") != "dev" && ours.contains(on) {
                assert!(allowed[name].contains(&on), "{name} may not depend on {on}");
            }
        }
    }
}

#[test]
fn versions_stand_in_one_table() {
    for manifest in manifests() {
        let document: toml::Table = std::fs::read_to_string(&manifest).unwrap().parse().unwrap();
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, value) in document.get(table).and_then(|t| t.as_table()).into_iter().flatten() {
                let shared = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
                assert!(shared, "{}: {name} must say `workspace = true`", manifest.display());
            }
        }
    }
}

#[test]
fn the_lowest_rust_builds_every_dependency() {
    let root: toml::Table = std::fs::read_to_string(top().join("Cargo.toml")).unwrap().parse().unwrap();
    let ours = version(root["workspace"]["package"]["rust-version"].as_str().unwrap());
    let metadata = metadata();
    let too_new: Vec<String> = packages(&metadata)
        .iter()
        .filter_map(|p| Some((p, p["rust_version"].as_str()?)))
        .filter(|(_, wanted)| version(wanted) > ours)
        .map(|(p, wanted)| format!("{} {} wants {wanted}", text(p, "name"), text(p, "version")))
        .collect();
    assert!(too_new.is_empty(), "newer Rust than rust-version says: {too_new:#?}");
}

fn version(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(|p| p.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[test]
fn dependencies_come_from_the_registry_under_known_licences() {
    let metadata = metadata();
    let deny: toml::Table = std::fs::read_to_string(top().join("deny.toml")).unwrap().parse().unwrap();
    let allowed: BTreeSet<&str> =
        deny["licenses"]["allow"].as_array().unwrap().iter().filter_map(|l| l.as_str()).collect();
    for package in packages(&metadata).iter().filter(|p| !is_ours(p)) {
        let (name, licence) = (text(package, "name"), text(package, "license").replace('/', " OR "));
        assert!(
            text(package, "source").starts_with("registry+"),
            "{name} comes from {}",
            text(package, "source")
        );
        // `A OR B` is fine when one side is; `A AND B` when both are.
        let fine = |expression: &str| {
            expression.split(" OR ").any(|side| {
                side.split(" AND ").all(|one| allowed.contains(one.trim_matches(['(', ')', ' '].as_slice())))
            })
        };
        let fine = fine(&licence)
            || licence.trim_matches(['(', ')']).split(") AND (").all(fine)
            || licence.split(" AND ").all(fine);
        assert!(fine || exempt(&deny, name), "{name}: the licence `{licence}` is not in deny.toml");
    }
}

fn exempt(deny: &toml::Table, name: &str) -> bool {
    let listed = |key: &str| {
        let entries = deny["licenses"].get(key).and_then(toml::Value::as_array).into_iter().flatten();
        entries.filter_map(|e| e.get("crate").or_else(|| e.get("name"))).any(|n| n.as_str() == Some(name))
    };
    listed("exceptions") || listed("clarify")
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "build" {
                walk(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

fn files(extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&top(), &mut found);
    found.retain(|p| p.extension().is_some_and(|e| e == extension));
    found
}

fn manifests() -> Vec<PathBuf> {
    let mut found = files("toml");
    found.retain(|p| p.file_name().is_some_and(|n| n == "Cargo.toml") && p.parent() != Some(&*top()));
    found
}

#[test]
fn unsafe_stands_in_sys_modules_only() {
    for file in files("rs") {
        let inside = file.strip_prefix(top()).unwrap();
        let sys = inside.components().any(|c| matches!(c.as_os_str().to_str(), Some("sys" | "sys.rs")));
        let code = std::fs::read_to_string(&file).unwrap();
        for (number, line) in code.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let block = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|word| code.contains(word));
            // This file names the words in quotes.
            let here = inside.ends_with("tests/tree.rs");
            assert!(
                !block || sys || here,
                "{}:{}: unsafe outside a module named sys",
                inside.display(),
                number + 1
            );
        }
    }
}

#[test]
fn every_member_takes_the_workspaces_lints_or_repeats_them() {
    let root: toml::Table = std::fs::read_to_string(top().join("Cargo.toml")).unwrap().parse().unwrap();
    let table = &root["workspace"]["lints"];
    for manifest in manifests() {
        let document: toml::Table = std::fs::read_to_string(&manifest).unwrap().parse().unwrap();
        let Some(lints) = document.get("lints") else { panic!("{} has no lints", manifest.display()) };
        if lints.get("workspace").and_then(toml::Value::as_bool) == Some(true) {
            continue;
        }
        for (tool, rules) in table.as_table().unwrap() {
            for (name, level) in rules.as_table().unwrap() {
                let own = lints.get(tool).and_then(|t| t.get(name));
                let relaxed = name == "unsafe_code" && own.and_then(toml::Value::as_str) == Some("deny");
                assert!(
                    own == Some(level) || relaxed,
                    "{}: lint {tool}::{name} differs from the workspace's",
                    manifest.display()
                );
            }
        }
    }
}

#[test]
fn no_machine_is_named() {
    let home = ["/ro", "ot/"].concat();
    let work = ["/wo", "rk/"].concat();
    let mut all = Vec::new();
    walk(&top(), &mut all);
    for file in all {
        let inside = file.strip_prefix(top()).unwrap();
        let Ok(content) = std::fs::read_to_string(&file) else { continue };
        for (number, line) in content.lines().enumerate() {
            let named = [&home, &work].iter().any(|p| line.contains(p.as_str()) && !line.contains("proc/"));
            assert!(!named, "{}:{}: a path of one machine: {line}", inside.display(), number + 1);
        }
    }
}
