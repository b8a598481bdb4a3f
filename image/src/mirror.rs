//! Where this machine gets Debian's archive from: its own apt configuration, or environment variables.

use std::process::Command;

use crate::tools::{self, ToolError};

/// Names the main mirror where the machine's apt does not, or should not.
pub const MIRROR_VARIABLE: &str = "KEELSON_MIRROR";
/// Names the security mirror.
pub const SECURITY_VARIABLE: &str = "KEELSON_SECURITY_MIRROR";

/// Why there is no mirror.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// apt could not be asked.
    #[error("this machine's apt cannot be asked for its mirror")]
    Apt(#[from] ToolError),
    /// apt knows no mirror of Debian.
    #[error(
        "this machine's apt knows no mirror of Debian; on Debian run `apt-get update` once, elsewhere set {MIRROR_VARIABLE} \
         (and {SECURITY_VARIABLE}) to the base address of a mirror"
    )]
    Unknown,
}

/// The mirrors to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    /// Base address of the archive.
    pub main: String,
    /// Base address of the security archive, where one is known.
    pub security: Option<String>,
}

/// Finds the mirrors: environment first, then apt's own list.
pub fn discover() -> Result<Mirrors, MirrorError> {
    let from_environment = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let (main, security) = (from_environment(MIRROR_VARIABLE), from_environment(SECURITY_VARIABLE));
    let rows = match main {
        Some(_) => String::new(),
        None => index_targets()?,
    };
    choose(main, security, &rows).ok_or(MirrorError::Unknown)
}

fn index_targets() -> Result<String, ToolError> {
    let mut apt: Command = tools::command("apt-get");
    apt.env_remove("APT_CONFIG").args([
        "indextargets",
        "--format",
        "$(REPO_URI)|$(ORIGIN)|$(RELEASE)",
        "Created-By: Packages",
    ]);
    Ok(String::from_utf8_lossy(&tools::output(apt)?).into_owned())
}

/// Rows are `address|origin|release`, as apt prints them.
fn choose(main: Option<String>, security: Option<String>, rows: &str) -> Option<Mirrors> {
    let debian = || {
        rows.lines().filter_map(|row| {
            let mut fields = row.split('|');
            let (address, origin, release) = (fields.next()?, fields.next()?, fields.next()?);
            let fetchable = ["http://", "https://", "file:", "mirror+", "copy:"]
                .iter()
                .any(|kind| address.starts_with(kind));
            (origin == "Debian" && fetchable).then_some((address, release))
        })
    };
    let side_suite =
        |release: &str| ["-security", "-updates", "-backports"].iter().any(|end| release.contains(end));
    let found_security =
        debian().find(|(_, release)| release.ends_with("-security")).map(|(address, _)| address.to_owned());
    let main = main.or_else(|| {
        debian().find(|(_, release)| !side_suite(release)).map(|(address, _)| address.to_owned())
    })?;
    let security = security.or(found_security).or_else(|| beside(&main));
    Some(Mirrors { main, security })
}

/// By Debian's own convention the security archive is `debian-security` beside `debian`.
fn beside(main: &str) -> Option<String> {
    main.trim_end_matches('/').strip_suffix("/debian").map(|base| format!("{base}/debian-security/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &str = "cdrom:[Debian 12]/|Debian|bookworm\nhttp://m/debian-security/|Debian|bookworm-security\n\
        http://x/other/|Other|stable\nhttp://m/debian/|Debian|bookworm-updates\nhttp://m/debian/|Debian|bookworm\n";

    #[test]
    fn the_machines_own_mirror_is_taken() {
        let mirrors = choose(None, None, ROWS).expect("a mirror");
        assert_eq!(mirrors.main, "http://m/debian/");
        assert_eq!(mirrors.security.as_deref(), Some("http://m/debian-security/"));
    }

    #[test]
    fn the_environment_wins_and_implies_its_security_archive() {
        let mirrors = choose(Some("http://mine/debian".into()), None, "").expect("a mirror");
        assert_eq!(mirrors.security.as_deref(), Some("http://mine/debian-security/"));
        assert_eq!(choose(Some("http://mine/flat".into()), None, "").and_then(|m| m.security), None);
    }

    #[test]
    fn a_machine_that_is_no_debian_has_none() {
        assert_eq!(choose(None, None, "http://u/ubuntu/|Ubuntu|noble\n"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_rows_are_survived(rows in "[a-z|:/\n]{0,200}") {
            let _ = choose(None, None, &rows);
        }
    }
}
