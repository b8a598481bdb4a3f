//! What the image is made of, as `parts.toml` says it: roles, packages, licences. Which exact files that is: see [`crate::lock`].

use serde::Deserialize;

/// The list that is compiled in.
pub const PARTS: &str = include_str!("../parts.toml");

/// Why the list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WantsError {
    /// Not TOML, or not of this shape.
    #[error("parts.toml cannot be read")]
    Parse(#[from] toml::de::Error),
    /// A part names neither or both of `package` and `via`.
    #[error("parts.toml: a part of role {0:?} needs either `package` or `via`")]
    Name(Role),
}

/// What a part is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The host's kernel and drivers.
    Kernel,
    /// The EFI stub of the UKI.
    Stub,
    /// The file-system check.
    Fsck,
    /// Processor updates.
    Microcode,
    /// Firmware of devices.
    Firmware,
    /// UEFI firmware for emulated servers.
    Ovmf,
    /// A kernel for guests of demo and tests.
    GuestKernel,
    /// Programs for those guests.
    GuestTools,
}

/// The whole list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wants {
    /// Version of this format: 1.
    pub schema: u32,
    /// Debian's code name of the release.
    pub release: String,
    /// Suites on the main mirror.
    pub suites: Vec<String>,
    /// Suite on the security mirror.
    pub security_suite: String,
    /// Components of the archive that are looked at.
    pub components: Vec<String>,
    /// The parts.
    #[serde(rename = "part")]
    pub parts: Vec<Want>,
}

/// One part.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Want {
    /// What it is for.
    pub role: Role,
    /// The package.
    pub package: Option<String>,
    /// Or a meta package that depends on it.
    pub via: Option<String>,
    /// A version prefix that a newer version must keep.
    #[serde(default)]
    pub series: String,
    /// SPDX expression of what is taken.
    pub licence: String,
    /// In words, what is taken.
    pub takes: String,
    /// Whether bytes of it are in the image.
    pub in_image: bool,
}

impl Want {
    /// The name in `parts.toml` that identifies this part whatever its version: the package or the meta package.
    pub fn handle(&self) -> &str {
        self.package.as_deref().or(self.via.as_deref()).unwrap_or_default()
    }
}

impl Wants {
    /// Reads a list.
    pub fn parse(text: &str) -> Result<Self, WantsError> {
        let wants: Self = toml::from_str(text)?;
        match wants.parts.iter().find(|want| want.package.is_some() == want.via.is_some()) {
            Some(want) => Err(WantsError::Name(want.role)),
            None => Ok(wants),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_list_is_sound() {
        let wants = Wants::parse(PARTS).expect("parts.toml");
        for role in [Role::Kernel, Role::Stub, Role::Fsck, Role::Ovmf, Role::GuestKernel] {
            assert_eq!(wants.parts.iter().filter(|want| want.role == role).count(), 1, "{role:?}");
        }
    }

    #[test]
    fn a_part_without_a_package_is_refused() {
        let text = PARTS.replace("package = \"ovmf\"\n", "");
        assert!(matches!(Wants::parse(&text), Err(WantsError::Name(Role::Ovmf))));
    }
}
