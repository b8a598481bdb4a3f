//! The host's name: what hostd saved, else the host word, else `keelson`.

use keelson_init_control::{HostWords, Refusal, check_hostname};

/// Where hostd keeps it (key `hostname`); init only reads it.
const SAVED: &str = "/state/hostd/host.toml";
/// The name of a host that was given none.
const DEFAULT: &str = "keelson";
/// What the kernel takes (HOST_NAME_MAX of limits.h, less one).
const LONGEST: usize = 63;

/// Sets it now.
pub(crate) fn set(name: &str) -> Result<(), Refusal> {
    let bad = |problem: String| Refusal::BadParameter { field: "name".into(), problem };
    check_hostname(name).map_err(bad)?;
    if name.len() > LONGEST {
        return Err(bad(format!("it has {} characters; the kernel takes {LONGEST}", name.len())));
    }
    let failed = |e: nix::errno::Errno| Refusal::Failed {
        what: format!("setting the host name {name}"),
        why: e.desc().into(),
    };
    nix::unistd::sethostname(name).map_err(failed)
}

/// Sets it at boot.
pub(crate) fn at_boot(words: &HostWords) {
    let saved = std::fs::read_to_string(SAVED).ok().and_then(|text| saved_name(&text));
    let name = saved.as_deref().or(words.hostname.as_deref()).unwrap_or(DEFAULT);
    if let Err(e) = set(name) {
        log::warn!("the host name stays as it is: {e}");
    }
}

/// The key `hostname` of host.toml. The rest of the document is hostd's, which also says when it is broken.
fn saved_name(text: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Named {
        hostname: Option<String>,
    }
    let name = toml::from_str::<Named>(text).ok()?.hostname?;
    check_hostname(&name).is_ok().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_saved_name_is_read_among_other_keys() {
        assert_eq!(saved_name("schema = 1\nhostname = \"esx7\"\n[other]\nx = 1\n").as_deref(), Some("esx7"));
        assert_eq!(saved_name("hostname = \"-bad-\""), None);
        assert_eq!(saved_name("hostname = "), None);
    }

    proptest! {
        #[test]
        fn no_document_makes_it_panic(text in "\\PC{0,200}") {
            saved_name(&text);
        }
    }
}
