//! Debian's archive by way of apt, with a configuration of our own: nothing of the machine's release, pins or hooks leaks in.
//!
//! apt verifies the signature of each suite with Debian's archive keys, and each index and package against it; what this
//! module reads from the indices is therefore what Debian signed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::digest;
use crate::mirror::{self, MirrorError, Mirrors};
use crate::packages::{self, Stanza};
use crate::tools::{self, ToolError};
use crate::wants::Wants;

/// Why the archive gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// No mirror is known.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// apt failed.
    #[error("apt could not {doing}")]
    Apt {
        /// What it was to do.
        doing: String,
        /// Its own words.
        #[source]
        source: ToolError,
    },
    /// The cache directory cannot be used.
    #[error("cannot use {}", .path.display())]
    Io {
        /// The path in question.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file that came is not the one that the signed index names.
    #[error(
        "{package} {version} arrived with SHA-256 {got}, the archive signed {want}; delete the cache and try again"
    )]
    Altered {
        /// Package name.
        package: String,
        /// Version asked for.
        version: String,
        /// What came.
        got: String,
        /// What was signed.
        want: String,
    },
}

/// The archive, seen through an apt of our own in `home`.
pub struct Archive {
    home: PathBuf,
    indices: Vec<(String, PathBuf)>,
}

impl Archive {
    /// Fetches the signed indices of the suites that `wants` names, keeping apt's state in `home`.
    pub fn update(home: &Path, wants: &Wants) -> Result<Self, ArchiveError> {
        let mirrors = mirror::discover()?;
        if mirrors.security.is_none() {
            eprintln!(
                "no security archive is known beside {}; set {} to have the newest kernel",
                mirrors.main,
                mirror::SECURITY_VARIABLE
            );
        }
        let home =
            fs::create_dir_all(home).and_then(|()| home.canonicalize()).map_err(|source| at(home, source))?;
        for dir in ["lists/partial", "archives/partial"] {
            let dir = home.join(dir);
            fs::create_dir_all(&dir).map_err(|source| at(&dir, source))?;
        }
        for (name, text) in [
            ("status", String::new()),
            ("apt.conf", configuration(&home)),
            ("keelson.sources", sources(&mirrors, wants)),
        ] {
            let path = home.join(name);
            fs::write(&path, text).map_err(|source| at(&path, source))?;
        }
        let mut archive = Self { home, indices: Vec::new() };
        archive.run("read the archive's indices", &["update", "-q"])?;
        archive.indices = archive.list_indices()?;
        Ok(archive)
    }

    /// What all suites say about the packages for which `wanted` holds.
    pub fn stanzas(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Stanza>, ArchiveError> {
        let mut all = Vec::new();
        for (suite, path) in &self.indices {
            match fs::read_to_string(path) {
                Ok(text) => all.extend(packages::read(&text, suite, &wanted)),
                // A suite without packages of a component has no such file.
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(at(path, source)),
            }
        }
        Ok(all)
    }

    /// Downloads one version of a package to `to`, and compares it with what the signed index says of it.
    pub fn download(&self, stanza: &Stanza, to: &Path) -> Result<(), ArchiveError> {
        let dir = tempfile::tempdir_in(&self.home).map_err(|source| at(&self.home, source))?;
        let what = format!("{}={}", stanza.package, stanza.version);
        let mut apt = self.apt();
        apt.current_dir(dir.path()).args(["download", "-q", &what]);
        run(apt, &format!("download {what}"))?;
        let entry = fs::read_dir(dir.path())
            .and_then(|mut entries| entries.next().unwrap_or_else(|| Err(io::ErrorKind::NotFound.into())))
            .map_err(|source| at(dir.path(), source))?;
        let got = digest::of_file(&entry.path()).map_err(|source| at(&entry.path(), source))?;
        if got != stanza.sha256 {
            return Err(ArchiveError::Altered {
                package: stanza.package.clone(),
                version: stanza.version.clone(),
                got,
                want: stanza.sha256.clone(),
            });
        }
        fs::rename(entry.path(), to)
            .or_else(|_| fs::copy(entry.path(), to).map(drop))
            .map_err(|source| at(to, source))
    }

    fn apt(&self) -> Command {
        let mut apt = tools::command("apt-get");
        apt.env("APT_CONFIG", self.home.join("apt.conf"));
        apt
    }

    fn run(&self, doing: &str, args: &[&str]) -> Result<(), ArchiveError> {
        let mut apt = self.apt();
        apt.args(args);
        run(apt, doing)
    }

    fn list_indices(&self) -> Result<Vec<(String, PathBuf)>, ArchiveError> {
        let mut apt = self.apt();
        apt.args(["indextargets", "--format", "$(RELEASE)|$(FILENAME)", "Created-By: Packages"]);
        let out = tools::output(apt)
            .map_err(|source| ArchiveError::Apt { doing: "list the archive's indices".into(), source })?;
        Ok(String::from_utf8_lossy(&out)
            .lines()
            .filter_map(|row| row.split_once('|'))
            .map(|(suite, path)| (suite.to_owned(), PathBuf::from(path)))
            .collect())
    }
}

fn at(path: &Path, source: io::Error) -> ArchiveError {
    ArchiveError::Io { path: path.to_owned(), source }
}

/// apt's progress is the user's to see, but standard output is for what this program says.
fn run(mut apt: Command, doing: &str) -> Result<(), ArchiveError> {
    let fail = |source| ArchiveError::Apt { doing: doing.to_owned(), source };
    let tool = tools::name_of(&apt);
    apt.stdout(Stdio::null()).stderr(Stdio::piped());
    let out = apt.spawn().and_then(std::process::Child::wait_with_output);
    let out = out.map_err(|source| fail(ToolError::Start { tool: tool.clone(), source }))?;
    let said = tools::last_words(&out.stderr);
    // `update` exits 0 when a suite could not be reached and old lists are left; a half-current archive is a failure here.
    let stale = String::from_utf8_lossy(&out.stderr)
        .lines()
        .any(|l| l.starts_with("W: Failed") || l.starts_with("W: Some index"));
    if out.status.success() && !stale {
        return Ok(());
    }
    Err(fail(ToolError::Failed { tool, status: out.status.to_string(), said }))
}

/// The machine's files override APT_CONFIG, so each is switched off by name; a proxy that is set there is carried over.
fn configuration(home: &Path) -> String {
    let home = home.display();
    let mut text = String::new();
    for setting in [
        "Dir::Etc::main \"/dev/null\"",
        "Dir::Etc::parts \"/dev/null\"",
        &format!("Dir::Etc::sourcelist \"{home}/keelson.sources\""),
        "Dir::Etc::sourceparts \"/dev/null\"",
        "Dir::Etc::preferences \"/dev/null\"",
        "Dir::Etc::preferencesparts \"/dev/null\"",
        "Dir::Etc::trusted \"/dev/null\"",
        "Dir::Etc::trustedparts \"/dev/null\"",
        &format!("Dir::State \"{home}\""),
        &format!("Dir::State::lists \"{home}/lists\""),
        &format!("Dir::State::status \"{home}/status\""),
        &format!("Dir::Cache \"{home}\""),
        "APT::Architecture \"amd64\"",
        // The sandbox user of a root apt may not reach a cache in a home directory.
        "APT::Sandbox::User \"root\"",
        "Acquire::Languages \"none\"",
        "Acquire::Check-Valid-Until \"true\"",
        "Acquire::Retries \"3\"",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\"",
    ] {
        text.push_str(setting);
        text.push_str(";\n");
    }
    text.push_str(&machine_transport());
    text
}

/// The machine's own settings for proxies, time-outs and certificates of http and https.
fn machine_transport() -> String {
    let mut apt = tools::command("apt-config");
    apt.env_remove("APT_CONFIG").args([
        "dump",
        "--no-empty",
        "--format",
        "%F \"%v\";%n",
        "Acquire::http",
        "Acquire::https",
    ]);
    // Without these settings the download may still work; if not, apt says why.
    tools::output(apt).map(|out| String::from_utf8_lossy(&out).into_owned()).unwrap_or_default()
}

fn sources(mirrors: &Mirrors, wants: &Wants) -> String {
    let keyring = tools::keyring().unwrap_or(Path::new(tools::KEYRINGS[0])).display().to_string();
    let stanza = |address: &str, suites: &str| {
        format!(
            "Types: deb\nURIs: {address}\nSuites: {suites}\nComponents: {}\nSigned-By: {keyring}\n",
            wants.components.join(" ")
        )
    };
    let mut text = stanza(&mirrors.main, &wants.suites.join(" "));
    if let Some(security) = &mirrors.security {
        text.push('\n');
        text.push_str(&stanza(security, &wants.security_suite));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wants::PARTS;

    #[test]
    fn nothing_of_the_machine_is_read() {
        let text = configuration(Path::new("/c"));
        for off in ["main", "parts", "sourceparts", "preferencesparts", "trustedparts"] {
            assert!(text.contains(&format!("Dir::Etc::{off} \"/dev/null\";")), "{off}");
        }
        assert!(text.contains("Dir::State::lists \"/c/lists\";"));
    }

    #[test]
    fn every_source_is_bound_to_debians_keys() {
        let wants = Wants::parse(PARTS).expect("parts.toml");
        let mirrors =
            Mirrors { main: "http://m/debian/".into(), security: Some("http://m/debian-security/".into()) };
        let text = sources(&mirrors, &wants);
        assert_eq!(text.matches("URIs:").count(), 2);
        assert_eq!(text.matches("Signed-By: /usr/share/keyrings/debian-archive-keyring").count(), 2);
    }
}
