//! Which definition: the best for a host, the best for two, and what must be masked for a given one.

use crate::definition::{Definition, definitions};
use crate::feature::{FeatureSet, check_masks};
use crate::host::HostCpu;
use crate::model::Missing;

/// The definition with the most that this host can run: the newest of its vendor's, or else the highest level.
pub fn best_for(host: &HostCpu) -> Option<&'static Definition> {
    common(&[host])
}

/// The definition with the most that all these hosts can run; `None` when there is none (different vendors have only levels in common,
/// and those with each vendor's own signature, so that a VM must be off to change over).
pub fn common(hosts: &[&HostCpu]) -> Option<&'static Definition> {
    let none = FeatureSet::default();
    let all = |d: &&Definition| hosts.iter().all(|host| d.fits(host, &none).is_empty());
    let newest_first = || definitions().iter().rev();
    newest_first()
        .filter(|d| !d.is_level())
        .find(all)
        .or_else(|| newest_first().filter(|d| d.is_level()).find(all))
}

/// The features to mask so that all these hosts can run the definition; `None` when masks alone do not make it so.
pub fn masks_for(definition: &Definition, hosts: &[&HostCpu]) -> Option<FeatureSet> {
    let none = FeatureSet::default();
    let missing = hosts.iter().flat_map(|host| definition.fits(host, &none));
    let features = missing.map(|m| if let Missing::Feature(f) = m { Some(f) } else { None });
    let masks: FeatureSet = features.collect::<Option<_>>()?;
    let names: Vec<&str> = masks.iter().map(crate::Feature::name).collect();
    check_masks(names).ok()
}
