//! Which drivers the image carries: the rule of `drivers.toml` applied to a kernel package, dependencies added.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::deb::{Entry, Files};
use crate::modinfo::{self, Modinfo, ModinfoError};

/// The rule that is compiled in.
pub const DRIVERS: &str = include_str!("../drivers.toml");

/// Why the rule could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Not TOML, or not of this shape.
    #[error("drivers.toml cannot be read")]
    Parse(#[from] toml::de::Error),
    /// Names that the kernel package knows nothing of.
    #[error("the kernel has no {}: renamed or dropped? correct drivers.toml", .0.join(", "))]
    Unknown(Vec<String>),
    /// A module needs one that is not in the package.
    #[error("module {module} needs {needs}, which the kernel package does not have")]
    Broken {
        /// The module.
        module: String,
        /// What it needs.
        needs: String,
    },
    /// A module is damaged.
    #[error("module {module} cannot be read")]
    Module {
        /// The module.
        module: String,
        /// What is wrong.
        #[source]
        source: ModinfoError,
    },
    /// Not a kernel package.
    #[error("the package has no lib/modules/<version>/kernel")]
    NoModules,
}

/// `drivers.toml`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Version of this format: 1.
    pub schema: u32,
    /// Groups of drivers, each with the reason why it is in.
    #[serde(rename = "group")]
    pub groups: Vec<Group>,
    /// Drivers that go without their firmware, with the reason why.
    #[serde(default)]
    pub without_firmware: Vec<WithoutFirmware>,
    /// Drivers that lie in the image unpacked.
    pub unpacked: Option<Unpacked>,
}

/// Drivers that are in for one reason.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Short name.
    pub name: String,
    /// Why they are in.
    pub reason: String,
    /// Module names with underscores.
    pub modules: Vec<String>,
}

/// Drivers whose firmware is left out.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithoutFirmware {
    /// Module names with underscores.
    pub modules: Vec<String>,
    /// Why.
    pub reason: String,
}

/// Drivers that every boot waits for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unpacked {
    /// Module names with underscores; what they need is unpacked as well.
    pub modules: Vec<String>,
    /// Why.
    pub reason: String,
}

impl Rule {
    /// Reads a rule.
    pub fn parse(text: &str) -> Result<Self, DriverError> {
        Ok(toml::from_str(text)?)
    }

    /// Every module that the rule names.
    pub fn names(&self) -> BTreeSet<&str> {
        self.groups.iter().flat_map(|group| &group.modules).map(String::as_str).collect()
    }

    /// Whether the firmware that `module` names is left out.
    pub fn goes_without_firmware(&self, module: &str) -> bool {
        self.without_firmware.iter().any(|group| group.modules.iter().any(|name| name == module))
    }
}

/// A selected module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Path below `lib/modules/<version>/`.
    pub path: String,
    /// The file as shipped (`.ko.xz`), or unpacked.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// What it says of itself.
    pub info: Modinfo,
}

/// The modules of one kernel that the image carries.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// The kernel's version, as `uname -r` says it.
    pub release: String,
    /// By module name.
    pub modules: BTreeMap<String, Module>,
    /// `modules.builtin` as shipped.
    pub builtin: String,
}

/// Takes what `names` lists from the unpacked kernel package `kernel`, and what those modules need.
pub fn select<'a>(
    kernel: &Files,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<Selection, DriverError> {
    let release = release(kernel)?;
    let base = format!("lib/modules/{release}/");
    let available: BTreeMap<String, &str> = kernel
        .below(&base)
        .filter(|path| path.contains(".ko"))
        .map(|path| (modinfo::module_name(path), path))
        .collect();
    let builtin = kernel
        .get(&format!("{base}modules.builtin"))
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .unwrap_or_default();
    let built_in: BTreeSet<String> = builtin.lines().map(modinfo::module_name).collect();

    let (wanted, unknown): (Vec<&str>, Vec<&str>) = names
        .into_iter()
        .filter(|name| !built_in.contains(*name))
        .partition(|name| available.contains_key(*name));
    if !unknown.is_empty() {
        return Err(DriverError::Unknown(unknown.into_iter().map(str::to_owned).collect()));
    }

    let mut modules: BTreeMap<String, Module> = BTreeMap::new();
    let mut wave: BTreeSet<String> = wanted.into_iter().map(str::to_owned).collect();
    while !wave.is_empty() {
        let read = read_all(kernel, &available, &wave)?;
        let mut next = BTreeSet::new();
        for (name, module) in read {
            for needs in &module.info.depends {
                if !available.contains_key(needs) {
                    return Err(DriverError::Broken { module: name, needs: needs.clone() });
                }
                next.insert(needs.clone());
            }
            // A softdep is a wish: it may be built in, an alias of an algorithm, or not built at all.
            next.extend(
                modinfo::softdep_names(&module.info.softdeps)
                    .into_iter()
                    .filter(|n| available.contains_key(n)),
            );
            let path = module.path.strip_prefix(&base).unwrap_or(&module.path).to_owned();
            modules.insert(name, Module { path, ..module });
        }
        wave = next.into_iter().filter(|name| !modules.contains_key(name)).collect();
    }
    Ok(Selection { release, modules, builtin })
}

fn release(kernel: &Files) -> Result<String, DriverError> {
    kernel
        .below("lib/modules/")
        .filter_map(|path| path.strip_prefix("lib/modules/")?.split_once("/kernel/"))
        .map(|(release, _)| release.to_owned())
        .next()
        .ok_or(DriverError::NoModules)
}

/// Unpacking is the slow part of a build: as many threads as there are processors share it.
fn read_all(
    kernel: &Files,
    available: &BTreeMap<String, &str>,
    names: &BTreeSet<String>,
) -> Result<Vec<(String, Module)>, DriverError> {
    let read = |name: &String| {
        let path = *available.get(name).ok_or_else(|| DriverError::Unknown(vec![name.clone()]))?;
        let Some(Entry::File(bytes)) = kernel.0.get(path) else {
            return Err(DriverError::Unknown(vec![name.clone()]));
        };
        let info =
            modinfo::read(bytes).map_err(|source| DriverError::Module { module: name.clone(), source })?;
        Ok((name.clone(), Module { path: path.to_owned(), bytes: bytes.clone(), info }))
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let names: Vec<&String> = names.iter().collect();
    let share = names.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = names
            .chunks(share)
            .map(|names| {
                scope.spawn(move || names.iter().map(|name| read(name)).collect::<Result<Vec<_>, _>>())
            })
            .collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

impl Selection {
    /// Unpacks some of the modules, and what they need.
    pub fn unpack(&mut self, names: &[String]) -> Result<(), DriverError> {
        let all: BTreeSet<String> = names
            .iter()
            .flat_map(|name| self.needs(name).into_iter().map(str::to_owned).chain([name.clone()]))
            .collect();
        for name in all {
            let module =
                self.modules.get_mut(&name).ok_or_else(|| DriverError::Unknown(vec![name.clone()]))?;
            if let Some(path) = module.path.strip_suffix(".xz") {
                module.bytes = modinfo::unpack(&module.bytes)
                    .map_err(|source| DriverError::Module { module: name, source })?;
                module.path = path.to_owned();
            }
        }
        Ok(())
    }

    /// Modules that `name` needs, directly and indirectly, such that loading from the last to the first works, as in depmod's
    /// `modules.dep`.
    pub fn needs(&self, name: &str) -> Vec<&str> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        self.visit(name, &mut seen, &mut order);
        order.pop(); // The module itself comes last: after all that it needs.
        order.reverse();
        order
    }

    fn visit<'a>(&'a self, name: &str, seen: &mut BTreeSet<&'a str>, order: &mut Vec<&'a str>) {
        let Some((name, module)) = self.modules.get_key_value(name) else { return };
        if seen.insert(name) {
            for needs in &module.info.depends {
                self.visit(needs, seen, order);
            }
            order.push(name);
        }
    }

    /// The tables that init reads, by file name, in the spelling of depmod.
    pub fn tables(&self) -> BTreeMap<&'static str, String> {
        let (mut dep, mut alias, mut softdep) = (String::new(), String::new(), String::new());
        for (name, module) in &self.modules {
            // Writing to a String cannot fail.
            let _ = write!(dep, "{}:", module.path);
            for needs in self.needs(name) {
                if let Some(needs) = self.modules.get(needs) {
                    let _ = write!(dep, " {}", needs.path);
                }
            }
            dep.push('\n');
            for pattern in &module.info.aliases {
                let _ = writeln!(alias, "alias {pattern} {name}");
            }
            for line in &module.info.softdeps {
                let _ = writeln!(softdep, "softdep {name} {line}");
            }
        }
        BTreeMap::from([
            ("modules.dep", dep),
            ("modules.alias", alias),
            ("modules.softdep", softdep),
            ("modules.builtin", self.builtin.clone()),
        ])
    }

    /// Firmware that the selected modules may ask for, with the modules that name it.
    pub fn firmware(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, module) in &self.modules {
            for file in &module.info.firmware {
                all.entry(file).or_default().push(name);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, depends: &[&str]) -> Module {
        let depends = depends.iter().map(|name| (*name).to_owned()).collect();
        let info = Modinfo { depends, aliases: vec![format!("of:{path}")], ..Modinfo::default() };
        Module { path: path.into(), bytes: Vec::new(), info }
    }

    fn selection() -> Selection {
        let modules = BTreeMap::from([
            ("a".into(), module("kernel/a.ko.xz", &["b", "c"])),
            ("b".into(), module("kernel/b.ko.xz", &["d"])),
            ("c".into(), module("kernel/c.ko.xz", &["d"])),
            ("d".into(), module("kernel/d.ko.xz", &[])),
        ]);
        Selection { release: "6".into(), modules, builtin: String::new() }
    }

    #[test]
    fn what_is_needed_most_comes_last() {
        let selection = selection();
        let needs = selection.needs("a");
        assert_eq!(needs.last(), Some(&"d"));
        assert_eq!(needs.len(), 3);
        assert!(selection.needs("d").is_empty());
    }

    #[test]
    fn tables_are_spelled_as_depmod_does() {
        let tables = selection().tables();
        assert!(tables["modules.dep"].contains("kernel/b.ko.xz: kernel/d.ko.xz\n"));
        assert!(tables["modules.dep"].contains("kernel/d.ko.xz:\n"));
        assert!(tables["modules.alias"].contains("alias of:kernel/a.ko.xz a\n"));
    }

    #[test]
    fn the_shipped_rule_is_sound() {
        let rule = Rule::parse(DRIVERS).expect("drivers.toml");
        let all: Vec<&String> = rule.groups.iter().flat_map(|group| &group.modules).collect();
        assert_eq!(rule.names().len(), all.len(), "a module is listed twice");
        assert!(rule.groups.iter().all(|group| !group.reason.is_empty()));
        assert!(all.iter().all(|name| !name.contains('-')), "names have underscores");
    }

    #[test]
    fn a_renamed_driver_fails_the_build_by_name() {
        let kernel =
            Files(BTreeMap::from([("lib/modules/6.12/kernel/x.ko.xz".to_owned(), Entry::File(Vec::new()))]));
        let error = select(&kernel, ["igb", "kvm"]).map(|_| ());
        assert!(matches!(error, Err(DriverError::Unknown(names)) if names == ["igb", "kvm"]));
    }

    proptest::proptest! {
        #[test]
        fn any_graph_even_a_loop_has_an_order(edges in proptest::collection::vec((0_u8..12, 0_u8..12), 0..40)) {
            let mut modules = BTreeMap::new();
            for n in 0..12_u8 {
                let depends: Vec<String> = edges.iter().filter(|(a, _)| *a == n).map(|(_, b)| format!("m{b}")).collect();
                let depends: Vec<&str> = depends.iter().map(String::as_str).collect();
                modules.insert(format!("m{n}"), module(&format!("m{n}.ko"), &depends));
            }
            let selection = Selection { release: "6".into(), modules, builtin: String::new() };
            for n in 0..12_u8 {
                let name = format!("m{n}");
                let needs = selection.needs(&name);
                let unique: BTreeSet<_> = needs.iter().collect();
                proptest::prop_assert_eq!(unique.len(), needs.len());
            }
        }
    }
}
