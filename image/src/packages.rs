//! Reads the archive's package indices (`Packages`), of which only the stanzas of the packages that are asked for are kept.

/// What an index says about one version of one package.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stanza {
    /// Package name.
    pub package: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Bytes of the file.
    pub size: u64,
    /// Name of the source package.
    pub source: String,
    /// Version of the source package.
    pub source_version: String,
    /// Other source packages that went into it, as `name (= version)`.
    pub built_using: String,
    /// The dependency field as it stands.
    pub depends: String,
    /// The suite whose index this is from.
    pub suite: String,
}

/// All stanzas of `index` for which `wanted` holds, in order; what is malformed is passed over.
pub fn read(index: &str, suite: &str, wanted: impl Fn(&str) -> bool) -> Vec<Stanza> {
    index
        .split("\n\n")
        .filter_map(|text| {
            // The name comes first in Debian's indices, and looking at it alone keeps 60 MB of text cheap.
            let name = text.trim_start_matches('\n').strip_prefix("Package: ")?.lines().next()?.trim();
            wanted(name).then(|| stanza(text, suite)).flatten()
        })
        .collect()
}

fn stanza(text: &str, suite: &str) -> Option<Stanza> {
    let mut out = Stanza { suite: suite.to_owned(), ..Stanza::default() };
    let mut source = "";
    for line in text.lines().filter(|line| !line.starts_with([' ', '\t'])) {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match key {
            "Package" => out.package = value.to_owned(),
            "Version" => out.version = value.to_owned(),
            "SHA256" => out.sha256 = value.to_ascii_lowercase(),
            "Size" => out.size = value.parse().ok()?,
            "Source" => source = value,
            "Depends" => out.depends = value.to_owned(),
            "Built-Using" => out.built_using = value.to_owned(),
            _ => {}
        }
    }
    // Without `Source` the names are equal; without a version in it, the versions are.
    let (name, rest) = source.split_once(' ').unwrap_or((source, ""));
    out.source = if name.is_empty() { out.package.clone() } else { name.to_owned() };
    let version = rest.trim().trim_start_matches('(').trim_end_matches(')');
    // A rebuild of a binary alone (`+b1`) has no source of its own.
    let plain =
        out.version.rsplit_once("+b").filter(|(_, n)| n.bytes().all(|b| b.is_ascii_digit())).map(|(v, _)| v);
    out.source_version =
        if version.is_empty() { plain.unwrap_or(&out.version).to_owned() } else { version.to_owned() };
    let whole = !out.version.is_empty()
        && out.sha256.len() == 64
        && out.sha256.bytes().all(|b| b.is_ascii_hexdigit());
    whole.then_some(out)
}

/// The packages that a dependency field names, without alternatives and versions.
pub fn dependency_names(depends: &str) -> impl Iterator<Item = &str> {
    depends
        .split(',')
        .filter_map(|clause| clause.trim().split([' ', '(', '|', ':']).next())
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "1ecc6404fe1a87c42c47875ea2d29f908dda96f9c2b1e675f52e8ba7c3db473a";

    #[test]
    fn source_names_and_versions_are_resolved() {
        let index = format!(
            "Package: a\nSource: src (1.0)\nVersion: 1.0+b2\nSize: 7\nSHA256: {SUM}\nDescription: x\n y: z\n\n\
             Package: b\nVersion: 2-1+b12\nSize: 7\nSHA256: {SUM}\n\nPackage: c\nVersion: 3\nSize: 7\nSHA256: short\n"
        );
        let all = read(&index, "trixie", |_| true);
        assert_eq!(all.len(), 2, "a stanza without a whole hash is no stanza");
        assert_eq!((all[0].source.as_str(), all[0].source_version.as_str()), ("src", "1.0"));
        assert_eq!((all[1].source.as_str(), all[1].source_version.as_str()), ("b", "2-1"));
        assert!(read(&index, "trixie", |name| name == "d").is_empty());
    }

    #[test]
    fn dependencies_lose_versions_and_alternatives() {
        let names: Vec<_> = dependency_names("linux-image-6.12-amd64 (= 6.12.1-1), a | b, c:any").collect();
        assert_eq!(names, ["linux-image-6.12-amd64", "a", "c"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "(Package|Version|SHA256|Size|Source|[a-z:() \n+]){0,60}") {
            let _ = read(&text, "s", |_| true);
            let _ = dependency_names(&text).count();
        }
    }
}
