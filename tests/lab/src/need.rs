//! What a tier needs, and what happens where it is missing: the test says so and is skipped, or, where `KEELSON_REQUIRE` names the
//! tier (`kvm`, `lab`), fails.

/// A tier of tests beyond plain unit tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// `/dev/kvm` of this machine.
    Kvm,
    /// Root (for namespaces), QEMU, and the built image.
    Lab,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Lab => "lab",
        }
    }
}

/// Whether `KEELSON_REQUIRE` names the tier.
pub fn required(tier: Tier) -> bool {
    std::env::var("KEELSON_REQUIRE").is_ok_and(|list| list.split(',').any(|word| word.trim() == tier.name()))
}

/// Says that a test cannot run for want of `what`, and returns; or ends the test in failure where the tier is required.
///
/// # Panics
/// Where `KEELSON_REQUIRE` names the tier: a skipped test must not look like a passed one there.
#[allow(clippy::panic)]
pub fn skip(tier: Tier, what: &str) {
    let text = format!("{} tier: {what} is missing", tier.name());
    if required(tier) {
        panic!("{text}, and KEELSON_REQUIRE asks for it");
    }
    eprintln!("SKIPPED ({text})");
}

/// What the tier lacks here; `None` when it can run.
pub fn missing(tier: Tier) -> Option<String> {
    match tier {
        Tier::Kvm => {
            let open = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
            open.err().map(|e| format!("a usable /dev/kvm ({e})"))
        }
        Tier::Lab => {
            if !nix::unistd::geteuid().is_root() {
                return Some(
                    "root, for network namespaces (run it with sudo, or within `unshare -Urnm`)".into(),
                );
            }
            let path = std::env::var_os("PATH").unwrap_or_default();
            let has = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
            ["qemu-system-x86_64", "ip", "setpriv", "unshare"]
                .into_iter()
                .find(|tool| !has(tool))
                .map(|tool| format!("the program {tool}"))
        }
    }
}

/// Returns from the calling test, loudly, where the tier cannot run.
#[macro_export]
macro_rules! need {
    ($tier:ident) => {
        if let Some(what) = $crate::need::missing($crate::need::Tier::$tier) {
            $crate::need::skip($crate::need::Tier::$tier, &what);
            return;
        }
    };
}
