//! The named definitions: the data file, read once, and what makes one of them a guest's processor.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::feature::FeatureSet;
use crate::host::HostCpu;
use crate::model::{Cache, CacheKind, Component, Missing, Model, component_feature};

/// The word for a guest that sees the host's processor as KVM offers it. It is no definition: it differs from host to host.
pub const HOST: &str = "host";

/// Family, model, stepping.
type Signature = [u32; 3];

/// What a guest's processor can be, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Its name, such as `amd-zen3`.
    pub name: String,
    /// Which hosts it is for, in a few words.
    pub about: String,
    /// Features.
    pub features: FeatureSet,
    /// The width of physical addresses, in bits.
    pub address_width: u8,
    /// The signature for each vendor whose processors can be it.
    signatures: BTreeMap<String, Signature>,
    caches: Vec<Cache>,
    layouts: BTreeMap<String, Vec<Component>>,
    level: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    layout: BTreeMap<String, Layout>,
    everywhere: Everywhere,
    definition: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    components: Vec<Component>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Everywhere {
    features: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    about: String,
    base: Option<String>,
    signatures: Option<BTreeMap<String, Signature>>,
    address_width: Option<u8>,
    features: String,
    caches: Option<Vec<String>>,
}

/// Why the data file cannot be used: a fault of ours, which a test finds.
#[derive(Debug, thiserror::Error)]
enum DataError {
    #[error(transparent)]
    Form(#[from] toml::de::Error),
    #[error(transparent)]
    Feature(#[from] crate::feature::UnknownFeature),
    #[error("{0}: {1}")]
    Entry(String, &'static str),
}

fn cache(text: &str) -> Option<Cache> {
    let mut words = text.split_whitespace();
    let (level, kind) = match words.next()? {
        "L1d" => (1, CacheKind::Data),
        "L1i" => (1, CacheKind::Instructions),
        "L2" => (2, CacheKind::Unified),
        "L3" => (3, CacheKind::Unified),
        _ => return None,
    };
    let (size_kib, ways) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Cache { level, kind, size_kib, ways, shared: words.next() == Some("shared") })
}

fn read(text: &str) -> Result<Vec<Definition>, DataError> {
    let data: Data = toml::from_str(text)?;
    let layouts: BTreeMap<String, Vec<Component>> =
        data.layout.into_iter().map(|(name, layout)| (name, layout.components)).collect();
    let everywhere = FeatureSet::named(data.everywhere.features.split_whitespace())?;
    let mut all: Vec<Definition> = Vec::new();
    for entry in data.definition {
        let wrong = |why| DataError::Entry(entry.name.clone(), why);
        let base = match &entry.base {
            None => None,
            Some(base) => {
                Some(all.iter().find(|d| d.name == *base).ok_or_else(|| wrong("its base is not there"))?)
            }
        };
        let own = FeatureSet::named(entry.features.split_whitespace())?;
        let caches = match &entry.caches {
            None => base.map(|b| b.caches.clone()),
            Some(lines) => {
                Some(lines.iter().map(|l| cache(l)).collect::<Option<_>>().ok_or_else(|| wrong("caches"))?)
            }
        };
        let definition = Definition {
            features: own.with(base.map_or(&everywhere, |b| &b.features)),
            address_width: entry
                .address_width
                .or(base.map(|b| b.address_width))
                .ok_or_else(|| wrong("no width"))?,
            signatures: entry
                .signatures
                .or(base.map(|b| b.signatures.clone()))
                .ok_or_else(|| wrong("no signature"))?,
            caches: caches.ok_or_else(|| wrong("no caches"))?,
            layouts: layouts.clone(),
            level: entry.name.starts_with("x86-64-"),
            name: entry.name,
            about: entry.about,
        };
        all.push(definition);
    }
    Ok(all)
}

/// All definitions: the levels, then each vendor's, older ones first.
pub fn definitions() -> &'static [Definition] {
    static ALL: OnceLock<Vec<Definition>> = OnceLock::new();
    // It is part of the program, and a test reads it: it cannot fail in what ships.
    ALL.get_or_init(|| read(include_str!("definitions.toml")).unwrap_or_default())
}

/// There is no definition of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no CPU definition `{0}`; there are: {names}", names = known())]
pub struct UnknownDefinition(pub String);

fn known() -> String {
    let names = definitions().iter().map(|d| d.name.as_str());
    std::iter::once(HOST).chain(names).collect::<Vec<_>>().join(", ")
}

/// The definition of this name. [`HOST`] is none.
pub fn find(name: &str) -> Result<&'static Definition, UnknownDefinition> {
    definitions().iter().find(|d| d.name == name).ok_or_else(|| UnknownDefinition(name.to_owned()))
}

impl Definition {
    /// Whether it is one of the levels that processors of several vendors have.
    pub fn is_level(&self) -> bool {
        self.level
    }

    /// The vendor whose processors alone can be it; `None` when it is for any.
    pub fn vendor(&self) -> Option<&str> {
        if self.level { None } else { self.signatures.keys().next().map(String::as_str) }
    }

    /// A guest's processor of this definition on a vendor's host, without the masked features and what needs them.
    pub fn resolve(&self, vendor: &str, masks: &FeatureSet) -> Model {
        let vendor = self.vendor().unwrap_or(vendor);
        let features = self.features.masked(masks);
        // A vendor that is not listed (a licensee of one that is) is shown the AMD form of a level.
        let signature = self.signatures.get(vendor).or_else(|| self.signatures.values().next());
        let [family, model, stepping] = signature.copied().unwrap_or_default();
        let layout = self.layouts.get(if vendor == crate::host::INTEL { "intel" } else { "amd" });
        let xsave = layout.into_iter().flatten();
        Model {
            definition: self.name.clone(),
            vendor: vendor.to_owned(),
            family,
            model,
            stepping,
            brand: format!("{} (Keelson)", self.name),
            address_width: self.address_width,
            xsave: xsave
                .filter(|c| component_feature(c.bit).is_some_and(|f| features.has(f)))
                .copied()
                .collect(),
            features,
            caches: self.caches.clone(),
        }
    }

    /// What a host lacks to run it without these features; empty when it can.
    pub fn fits(&self, host: &HostCpu, masks: &FeatureSet) -> Vec<Missing> {
        self.resolve(&host.vendor, masks).fits(host)
    }

    /// What this definition has beyond a baseline; empty when every host that can run the baseline can run it.
    pub fn beyond(&self, baseline: &Self, masks: &FeatureSet) -> Vec<Missing> {
        let vendor = baseline.vendor().or(self.vendor()).unwrap_or_default();
        let (own, other) = (self.resolve(vendor, masks), baseline.resolve(vendor, &FeatureSet::default()));
        let mut missing = own.fits(&other.as_host());
        if let (Some(wanted), None) = (self.vendor(), baseline.vendor()) {
            missing.push(Missing::Vendor { wanted: wanted.to_owned(), has: "any".into() });
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_file_is_whole_and_its_names_are_unique() {
        let all = read(include_str!("definitions.toml")).unwrap();
        for (n, d) in all.iter().enumerate() {
            assert!(all.iter().skip(n + 1).all(|other| other.name != d.name), "{} is there twice", d.name);
            assert_eq!(d.features.masked(&FeatureSet::default()), d.features);
            for vendor in ["AuthenticAMD", "GenuineIntel"] {
                let model = d.resolve(vendor, &FeatureSet::default());
                assert!(model.brand.len() <= 47 && model.vendor.len() == 12 && model.family != 0);
                assert_eq!(model.features.has("avx"), model.xsave.iter().any(|c| c.bit == 2), "{}", d.name);
                assert_eq!(model.features.has("pku"), model.xsave.iter().any(|c| c.bit == 9), "{}", d.name);
            }
        }
        let families = |vendor| all.iter().filter(|d| d.vendor() == Some(vendor)).count();
        assert!(families("AuthenticAMD") >= 3 && families("GenuineIntel") >= 3);
        assert_eq!(all.iter().filter(|d| d.is_level()).count(), 4);
    }

    #[test]
    fn each_family_has_all_that_its_forerunner_has() {
        let none = FeatureSet::default();
        for pair in definitions().windows(2) {
            if pair[0].vendor() == pair[1].vendor() {
                assert_eq!(pair[0].beyond(&pair[1], &none), [], "{}", pair[1].name);
                assert_ne!(pair[1].beyond(&pair[0], &none), [], "{}", pair[1].name);
            }
        }
        let beyond = |a, b| find(a).unwrap().beyond(find(b).unwrap(), &none);
        assert_eq!(beyond("x86-64-v3", "amd-zen1"), []);
        assert_eq!(beyond("x86-64-v4", "intel-skylake-server"), []);
        assert_ne!(beyond("x86-64-v4", "intel-broadwell"), []);
        assert_ne!(beyond("amd-zen1", "intel-sapphirerapids"), []);
        assert_ne!(beyond("amd-zen1", "x86-64-v4"), []);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let said = find("zen3").unwrap_err().to_string();
        assert!(said.contains("`zen3`") && said.contains("amd-zen3") && said.contains("host,"), "{said}");
        assert!(find(HOST).is_err());
    }
}
