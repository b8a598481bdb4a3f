//! Taps of VMs: what netd writes on each, so that it is known again after a restart of netd, and how one is made.
//!
//! The tap belongs to whoever holds its descriptor (the VM's process); netd keeps none. The mapping is the interface's alias.

use std::io;
use std::os::fd::OwnedFd;

use uuid::Uuid;

use crate::sys;

/// A tap's alias: `vm=<uuid> index=0 pg=VM Network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TapAlias {
    pub(crate) vm: Uuid,
    pub(crate) index: u32,
    pub(crate) port_group: String,
}

/// The kernel's limit is 255 bytes for the whole alias.
pub(crate) const MAX_ALIAS: usize = 255;

impl std::fmt::Display for TapAlias {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "vm={} index={} pg={}", self.vm, self.index, self.port_group)
    }
}

impl TapAlias {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (vm, rest) = text.strip_prefix("vm=")?.split_once(' ')?;
        let (index, port_group) = rest.strip_prefix("index=")?.split_once(' ')?;
        let port_group = port_group.strip_prefix("pg=")?;
        Some(Self { vm: vm.parse().ok()?, index: index.parse().ok()?, port_group: port_group.into() })
    }
}

/// Makes a tap of this name and returns its descriptor. It vanishes with the last copy of it.
pub(crate) fn open(name: &str) -> io::Result<OwnedFd> {
    let tun = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let tun = OwnedFd::from(tun);
    sys::make_tap(&tun, name)?;
    Ok(tun)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn an_alias_is_read_back(vm: u128, index: u32, port_group in "\\PC{1,64}") {
            let alias = TapAlias { vm: Uuid::from_u128(vm), index, port_group };
            proptest::prop_assert_eq!(TapAlias::parse(&alias.to_string()), Some(alias));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,300}") {
            let _ = TapAlias::parse(&text);
        }
    }
}
