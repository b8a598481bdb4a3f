//! The descriptor stores: what outlives a unit's process until it is released.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use keelson_init_control::{Kept, Refusal, UnitId};

/// How many one unit may keep.
const KEPT_MAX: usize = 64;

/// All stores.
#[derive(Debug, Default)]
pub(crate) struct Store(BTreeMap<UnitId, BTreeMap<String, OwnedFd>>);

/// Names are 1 to 64 of `a-z`, `0-9`, `_`, `-` and `.`: they stand in `KEELSON_FDS` between commas and colons.
pub(crate) fn check_name(field: &str, name: &str) -> Result<(), Refusal> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
        let problem = format!("`{name}` is no name: it must be 1 to 64 of a-z, 0-9, `_`, `-` and `.`");
        return Err(Refusal::BadParameter { field: field.into(), problem });
    }
    Ok(())
}

impl Store {
    /// Keeps one, replacing one of that name.
    pub(crate) fn keep(&mut self, unit: UnitId, name: &str, fd: OwnedFd) -> Result<(), Refusal> {
        check_name("name", name)?;
        let of_unit = self.0.entry(unit).or_default();
        if of_unit.len() >= KEPT_MAX && !of_unit.contains_key(name) {
            let why = format!("it keeps {KEPT_MAX} descriptors, and may not keep more");
            return Err(Refusal::NotForThisUnit { unit, why });
        }
        of_unit.insert(name.into(), fd);
        Ok(())
    }

    /// A copy of one.
    pub(crate) fn fetch(&self, unit: UnitId, name: &str) -> Result<OwnedFd, Refusal> {
        let fd = self.0.get(&unit).and_then(|of_unit| of_unit.get(name));
        let fd = fd.ok_or_else(|| Refusal::NoSuchDescriptor { unit, name: name.into() })?;
        fd.try_clone().map_err(|e| Refusal::Failed {
            what: format!("copying descriptor {name} of {unit}"),
            why: e.to_string(),
        })
    }

    /// Gives one up.
    pub(crate) fn release(&mut self, unit: UnitId, name: &str) -> Result<(), Refusal> {
        let released = self.0.get_mut(&unit).and_then(|of_unit| of_unit.remove(name));
        self.0.retain(|_, of_unit| !of_unit.is_empty());
        released.map(drop).ok_or_else(|| Refusal::NoSuchDescriptor { unit, name: name.into() })
    }

    /// The names that a unit keeps.
    pub(crate) fn names(&self, unit: UnitId) -> Vec<String> {
        self.0.get(&unit).map(|of_unit| of_unit.keys().cloned().collect()).unwrap_or_default()
    }

    /// All of them.
    pub(crate) fn list(&self) -> Vec<Kept> {
        let all =
            self.0.iter().flat_map(|(unit, of_unit)| of_unit.iter().map(|(name, fd)| (*unit, name, fd)));
        all.map(|(unit, name, fd)| Kept { unit, name: name.clone(), bytes: held(fd) }).collect()
    }
}

/// What a descriptor holds of memory or disk: its allocated blocks.
fn held(fd: &OwnedFd) -> u64 {
    let blocks =
        nix::sys::stat::fstat(fd).map(|stat| u64::try_from(stat.st_blocks).unwrap_or(0)).unwrap_or(0);
    blocks.saturating_mul(512)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    fn file() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    #[test]
    fn what_is_kept_can_be_fetched_and_released_once() {
        let mut store = Store::default();
        let mut memory = std::fs::File::from(file());
        memory.write_all(&[7; 8192]).unwrap();
        memory.sync_all().unwrap();
        store.keep(UnitId::Hostd, "memory", memory.into()).unwrap();
        let mut copy = std::fs::File::from(store.fetch(UnitId::Hostd, "memory").unwrap());
        copy.rewind().unwrap();
        let mut first = [0; 1];
        copy.read_exact(&mut first).unwrap();
        assert_eq!(first, [7]);
        let list = store.list();
        assert_eq!((list.len(), list[0].name.as_str()), (1, "memory"));
        store.release(UnitId::Hostd, "memory").unwrap();
        assert!(store.release(UnitId::Hostd, "memory").is_err());
        assert!(store.fetch(UnitId::Hostd, "memory").is_err());
        assert!(store.list().is_empty());
    }

    #[test]
    fn names_and_numbers_are_bounded() {
        let mut store = Store::default();
        for wrong in ["", "a:b", "a,b", "A", "ä", &"x".repeat(65)] {
            assert!(store.keep(UnitId::Hostd, wrong, file()).is_err(), "{wrong}");
        }
        for n in 0..KEPT_MAX {
            store.keep(UnitId::Hostd, &format!("disk{n}"), file()).unwrap();
        }
        assert!(store.keep(UnitId::Hostd, "one-more", file()).is_err());
        store.keep(UnitId::Hostd, "disk0", file()).unwrap();
        store.keep(UnitId::Netd, "one-more", file()).unwrap();
    }
}
