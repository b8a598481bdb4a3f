//! How epochs are numbered and named.

use std::fmt;

/// The number of one owner of a VM, from 1, without gaps. The file that holds its record is `owner.<number>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

/// How the names of owner files begin.
pub(super) const PREFIX: &str = "owner.";

impl Epoch {
    /// The first one of a VM.
    pub const FIRST: Self = Self(1);

    /// The epoch of that number; `None` for 0.
    pub fn new(number: u64) -> Option<Self> {
        (number > 0).then_some(Self(number))
    }

    /// Its number.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The one after it; `None` after the last that can be written.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }

    /// The name of its file.
    pub fn file_name(self) -> String {
        format!("{PREFIX}{}", self.0)
    }

    /// Reads a file's name. Only the one spelling that is written counts: `owner.07` is nobody's.
    pub fn of_file(name: &str) -> Option<Self> {
        let epoch = Self::new(name.strip_prefix(PREFIX)?.parse().ok()?)?;
        (epoch.file_name() == name).then_some(epoch)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_is_written_is_read() {
        for wrong in
            ["owner.0", "owner.07", "owner.+7", "owner.", "owner", "owner.1.", "owner.18446744073709551616"]
        {
            assert_eq!(Epoch::of_file(wrong), None, "{wrong}");
        }
        assert_eq!(Epoch::of_file("owner.18446744073709551615").and_then(Epoch::next), None);
    }

    proptest! {
        #[test]
        fn a_name_is_read_back(number in 1u64..) {
            let epoch = Epoch::new(number).unwrap();
            prop_assert_eq!(Epoch::of_file(&epoch.file_name()), Some(epoch));
        }

        #[test]
        fn no_name_makes_it_panic(name in "\\PC{0,40}") {
            let _ = Epoch::of_file(&name);
        }
    }
}
