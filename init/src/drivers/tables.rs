//! The tables of depmod(8) that lie beside the drivers: which file is which module, what it needs, and which names it answers to.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::matcher::{covers, literal};

/// Length of `pci:v00001AF4`: aliases of PCI devices are sorted by vendor.
const PCI_VENDOR: usize = 13;

/// One module.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Module {
    path: String,
    /// What it needs, in the order of modules.dep: to be loaded from the last to the first.
    needs: Vec<String>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    modules: HashMap<String, Module>,
    /// Alias patterns and their modules, by the start of the pattern (see [`bucket`]).
    aliases: HashMap<String, Vec<(String, String)>>,
    before: HashMap<String, Vec<String>>,
    after: HashMap<String, Vec<String>>,
}

/// A module's name from its file's: `kernel/drivers/net/e1000e.ko.xz` is `e1000e`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split_once(".ko").map_or(file, |(name, _)| name))
}

/// `kvm-amd` and `kvm_amd` are one module.
pub(crate) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Where a pattern is filed: PCI by vendor, others by what stands before the colon, the rest together.
fn bucket(literal: &str) -> &str {
    if literal.starts_with("pci:v")
        && let Some(vendor) = literal.get(..PCI_VENDOR)
    {
        return vendor;
    }
    literal.find(':').and_then(|colon| literal.get(..=colon)).unwrap_or_default()
}

impl Tables {
    /// Reads those of the running kernel from `dir` (`/lib/modules/<release>`). What is missing is empty.
    pub(crate) fn read(dir: &Path) -> Self {
        let text = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        Self::parse(&text("modules.dep"), &text("modules.alias"), &text("modules.softdep"))
    }

    /// Reads the three tables; lines that are none are passed over.
    pub(crate) fn parse(dep: &str, alias: &str, softdep: &str) -> Self {
        let mut tables = Self::default();
        for (path, needs) in dep.lines().filter_map(|line| line.split_once(':')) {
            let needs = needs.split_whitespace().map(name_of).collect();
            tables.modules.insert(name_of(path), Module { path: path.trim().into(), needs });
        }
        for line in alias.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next()) {
                let key = bucket(literal(pattern)).to_owned();
                tables.aliases.entry(key).or_default().push((pattern.into(), canonical(module)));
            }
        }
        for line in softdep.lines() {
            tables.soft(line);
        }
        tables
    }

    /// `softdep NAME pre: A B post: C`.
    fn soft(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let (Some("softdep"), Some(name)) = (words.next(), words.next()) else { return };
        let mut into: Option<&mut Vec<String>> = None;
        for word in words {
            match word {
                "pre:" => into = Some(self.before.entry(canonical(name)).or_default()),
                "post:" => into = Some(self.after.entry(canonical(name)).or_default()),
                other => {
                    if let Some(list) = into.as_deref_mut() {
                        list.push(canonical(other));
                    }
                }
            }
        }
    }

    /// The modules that answer to what a device or the kernel asks for: by name, or by alias.
    pub(crate) fn answering(&self, wanted: &str) -> Vec<String> {
        let name = canonical(wanted);
        if self.modules.contains_key(&name) {
            return vec![name];
        }
        let mut keys = vec![bucket(wanted), "", wanted.split_inclusive(':').next().unwrap_or_default()];
        keys.dedup();
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for key in keys {
            if seen.insert(key) {
                let filed = self.aliases.get(key).into_iter().flatten();
                found.extend(
                    filed.filter(|(pattern, _)| covers(pattern, wanted)).map(|(_, module)| module.clone()),
                );
            }
        }
        found.into_iter().collect()
    }

    /// A module's file, relative to the directory of the tables; `None` when the image does not carry it.
    pub(crate) fn path(&self, name: &str) -> Option<&str> {
        self.modules.get(name).map(|module| module.path.as_str())
    }

    /// In which order to load for `name`: what it needs and wishes first, itself, and what it wishes after.
    pub(crate) fn order(&self, name: &str) -> Vec<String> {
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        self.visit(name, &mut seen, &mut order);
        order
    }

    fn visit(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<String>) {
        if !seen.insert(name.to_owned()) {
            return;
        }
        // A wish may be an alias, such as that of an algorithm.
        let wishes = |of: &HashMap<String, Vec<String>>| -> Vec<String> {
            of.get(name).into_iter().flatten().flat_map(|wish| self.answering(wish)).collect()
        };
        for wish in wishes(&self.before) {
            self.visit(&wish, seen, order);
        }
        let Some(module) = self.modules.get(name) else { return };
        for need in module.needs.iter().rev() {
            self.visit(need, seen, order);
        }
        order.push(name.to_owned());
        for wish in wishes(&self.after) {
            self.visit(&wish, seen, order);
        }
    }

    /// How many modules there are.
    pub(crate) fn len(&self) -> usize {
        self.modules.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tables() -> Tables {
        Tables::parse(
            "kernel/net/llc/llc.ko.xz:\nkernel/net/802/stp.ko.xz: kernel/net/llc/llc.ko.xz\n\
             kernel/net/bridge/bridge.ko.xz: kernel/net/802/stp.ko.xz kernel/net/llc/llc.ko.xz\n\
             kernel/drivers/net/virtio_net.ko.xz: kernel/net/core/failover.ko.xz\nkernel/net/core/failover.ko.xz:\n\
             kernel/arch/x86/kvm/kvm-amd.ko.xz:\nkernel/lib/crc32c-intel.ko.xz:\nkernel/fs/ext4/ext4.ko.xz:\n",
            "alias virtio:d00000001v* virtio_net\nalias pci:v00008086d00001533sv*sd*bc*sc*i* igb\n\
             alias pci:v*d*sv*sd*bc01sc06i01* ahci\nalias rtnl-link-bridge bridge\nalias crypto-crc32c crc32c_intel\nnonsense\n",
            "softdep ext4 pre: crypto-crc32c post: kvm-amd\n",
        )
    }

    #[test]
    fn devices_and_names_are_answered() {
        let tables = tables();
        assert_eq!(tables.answering("virtio:d00000001v00001AF4"), ["virtio_net"]);
        assert_eq!(tables.answering("pci:v00008086d00001533sv0sd0bc02sc00i00"), ["igb"]);
        assert_eq!(tables.answering("pci:v00008086d00002922sv0sd0bc01sc06i01"), ["ahci"]);
        assert_eq!(tables.answering("rtnl-link-bridge"), ["bridge"]);
        assert_eq!(tables.answering("kvm-amd"), ["kvm_amd"]);
        assert!(tables.answering("virtio:d00000099v00001AF4").is_empty());
        assert_eq!(tables.len(), 8);
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let tables = tables();
        assert_eq!(tables.order("bridge"), ["llc", "stp", "bridge"]);
        assert_eq!(tables.order("ext4"), ["crc32c_intel", "ext4", "kvm_amd"]);
        assert!(tables.order("nothing").is_empty());
    }

    proptest! {
        /// Tables with cycles and gaps are walked to an end, each module once, its needs before it where there is no cycle.
        #[test]
        fn any_graph_has_an_order(edges in prop::collection::vec((0u8..12, 0u8..12), 0..40)) {
            let mut dep = String::new();
            for n in 0..12u8 {
                let needs: Vec<String> = edges.iter().filter(|(a, b)| *a == n && b < a).map(|(_, b)| format!("m{b}.ko")).collect();
                dep.push_str(&format!("m{n}.ko: {}\n", needs.join(" ")));
            }
            let soft: String = edges.iter().map(|(a, b)| format!("softdep m{b} pre: m{a}\n")).collect();
            let tables = Tables::parse(&dep, "", &soft);
            for n in 0..12 {
                let name = format!("m{n}");
                let order = tables.order(&name);
                let unique: BTreeSet<&String> = order.iter().collect();
                prop_assert_eq!(unique.len(), order.len());
                prop_assert!(order.contains(&name));
            }
        }

        #[test]
        fn no_table_makes_it_panic(text in "\\PC{0,300}", wanted in "\\PC{0,60}") {
            let tables = Tables::parse(&text, &text, &text);
            tables.answering(&wanted);
            tables.order(&wanted);
            Tables::parse("", &format!("alias {wanted} x\nalias pci:v{wanted} y"), "").answering(&wanted);
        }
    }
}
