//! Host words: what a host can be told at power-on, by the kernel command line (`keelson.address=dhcp`) or by the file
//! `keelson.conf` on the EFI system partition (`address = dhcp`, one a line, `#` starts a comment).
//!
//! Words seed what has never been configured; a saved configuration wins over them, but for `log`. A word that is unknown or
//! malformed is reported by name and ignored; the others count. Where both sources give a word, the command line wins.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Everything that a host can be told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostWords {
    /// `address=dhcp` or `address=192.0.2.10/24`: how the management adapter gets its IPv4 address.
    pub address: Option<AddressWord>,
    /// `gateway=192.0.2.1`: the default router; only with a static address.
    pub gateway: Option<Ipv4Addr>,
    /// `dns=192.0.2.2,192.0.2.3`: at most three name servers.
    pub dns: Vec<Ipv4Addr>,
    /// `vlan=20`: the management network's VLAN, 0 (untagged) to 4094.
    pub vlan: Option<u16>,
    /// `nic=vmnic1` or `nic=aa:bb:cc:dd:ee:ff`: the uplink of vSwitch0.
    pub nic: Option<String>,
    /// `hostname=esx7`: RFC 1123 labels, at most 253 characters.
    pub hostname: Option<String>,
    /// `root_hash=$argon2id$…`: root's password as an argon2id PHC string.
    pub root_hash: Option<String>,
    /// `log=debug`: error, warn, info, debug or trace.
    pub log: Option<log::LevelFilter>,
}

/// How the management adapter gets its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressWord {
    /// By DHCP.
    Dhcp,
    /// This one.
    Static(Ipv4Net),
}

/// A word that was not understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{origin}: `{word}` is ignored: {problem}")]
pub struct WordError {
    /// `kernel command line` or `keelson.conf line 3`.
    pub origin: String,
    /// The word as written; a `root_hash` is shown without its value.
    pub word: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Reads the words `keelson.…=…` of a kernel command line; others are the kernel's own. A value may stand in double quotes.
pub fn parse_cmdline(line: &str) -> (HostWords, Vec<WordError>) {
    let mut words = HostWords::default();
    let mut errors = Vec::new();
    for word in split(line) {
        let Some(word) = word.strip_prefix("keelson.") else { continue };
        words.take(word, "kernel command line", &mut errors);
    }
    (words, errors)
}

/// Reads a `keelson.conf`.
pub fn parse_file(text: &str) -> (HostWords, Vec<WordError>) {
    let mut words = HostWords::default();
    let mut errors = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        words.take(line, &format!("keelson.conf line {}", number + 1), &mut errors);
    }
    (words, errors)
}

/// Splits at white space outside double quotes, and drops the quotes, as the kernel does.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|w| !w.is_empty());
    words
}

impl HostWords {
    /// These words, with `other`'s where this has none.
    pub fn or(self, other: Self) -> Self {
        // A gateway belongs to its address: from another source it would be a route into another network.
        let gateway = if self.address.is_some() { self.gateway } else { self.gateway.or(other.gateway) };
        Self {
            address: self.address.or(other.address),
            gateway,
            dns: if self.dns.is_empty() { other.dns } else { self.dns },
            vlan: self.vlan.or(other.vlan),
            nic: self.nic.or(other.nic),
            hostname: self.hostname.or(other.hostname),
            root_hash: self.root_hash.or(other.root_hash),
            log: self.log.or(other.log),
        }
    }

    fn take(&mut self, word: &str, origin: &str, errors: &mut Vec<WordError>) {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key.trim(), value.trim().trim_matches('"')),
            None => (word.trim(), ""),
        };
        if let Err(problem) = self.set(key, value) {
            let word =
                if key == "root_hash" { format!("{key}=…") } else { word.chars().take(120).collect() };
            errors.push(WordError { origin: origin.into(), word, problem });
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let ip = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| format!("`{text}` is no IPv4 address"));
        match key {
            "address" if value == "dhcp" => self.address = Some(AddressWord::Dhcp),
            "address" => {
                let net: Ipv4Net = value.parse().map_err(|_| "it must be `dhcp` or an address with its prefix length, such as 192.0.2.10/24".to_owned())?;
                let host = net.addr();
                if host.is_unspecified() || host.is_multicast() || host.is_broadcast() || host.is_loopback() || net.prefix_len() == 0 {
                    return Err("it is no address that a host can have".into());
                }
                self.address = Some(AddressWord::Static(net));
            }
            "gateway" => self.gateway = Some(ip(value)?),
            "dns" => {
                let servers = value.split(',').map(|s| ip(s.trim())).collect::<Result<Vec<_>, _>>()?;
                if servers.len() > 3 {
                    return Err("at most three name servers are possible".into());
                }
                self.dns = servers;
            }
            "vlan" => {
                let vlan = value.parse::<u16>().ok().filter(|v| *v <= 4094);
                self.vlan = Some(vlan.ok_or("it must be 0 (untagged) to 4094")?);
            }
            "nic" => {
                let number = value.strip_prefix("vmnic").is_some_and(|n| !n.is_empty() && n.len() <= 4 && n.bytes().all(|b| b.is_ascii_digit()));
                let pairs: Vec<&str> = value.split(':').collect();
                let mac = pairs.len() == 6 && pairs.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
                if !number && !mac {
                    return Err("it must be a name such as vmnic1 or a MAC address".into());
                }
                self.nic = Some(value.to_ascii_lowercase());
            }
            "hostname" => {
                check_hostname(value)?;
                self.hostname = Some(value.into());
            }
            "root_hash" => {
                // The whole check is hostd's, which knows argon2; here only that it is no clear text.
                if !value.starts_with("$argon2id$") {
                    return Err("it must be an argon2id hash in PHC form, `$argon2id$v=19$…`".into());
                }
                self.root_hash = Some(value.into());
            }
            "log" => {
                let level = value.parse().map_err(|_| "it must be error, warn, info, debug or trace")?;
                self.log = Some(level);
            }
            _ => return Err("there is no such word; address, gateway, dns, vlan, nic, hostname, root_hash and log are known".into()),
        }
        Ok(())
    }
}

/// Whether `name` is a host name (RFC 1123, 2.1): labels of letters, digits and inner hyphens, 63 characters at most each.
pub fn check_hostname(name: &str) -> Result<(), String> {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(
            "it must be a host name: letters, digits and inner hyphens, in parts of at most 63 characters"
                .into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_read_and_its_mistakes_are_named() {
        let (words, errors) = parse_cmdline(
            "quiet keelson.address=192.0.2.10/24 keelson.gateway=192.0.2.1 keelson.dns=192.0.2.2,192.0.2.3 keelson.vlan=4095 \
             keelson.hostname=\"host-1\" keelson.colour=blue keelson.root_hash=secret keelson.log=debug keelson.nic=vmnic1",
        );
        assert_eq!(words.address, Some(AddressWord::Static("192.0.2.10/24".parse().unwrap())));
        assert_eq!(words.dns.len(), 2);
        assert_eq!(words.hostname.as_deref(), Some("host-1"));
        assert_eq!(words.log, Some(log::LevelFilter::Debug));
        assert_eq!(words.nic.as_deref(), Some("vmnic1"));
        let named: Vec<&str> = errors.iter().map(|e| e.word.as_str()).collect();
        assert_eq!(named, ["vlan=4095", "colour=blue", "root_hash=…"]);
    }

    #[test]
    fn a_file_is_read_with_line_numbers() {
        let (words, errors) =
            parse_file("\u{feff}# a comment\n\naddress = dhcp\r\nhostname = -bad-\nvlan=20\n");
        assert_eq!((words.address, words.vlan), (Some(AddressWord::Dhcp), Some(20)));
        assert_eq!(errors[0].origin, "keelson.conf line 4");
    }

    #[test]
    fn the_command_line_wins_and_a_gateway_stays_with_its_address() {
        let (line, _) = parse_cmdline("keelson.address=dhcp");
        let (file, _) = parse_file("address=192.0.2.1/24\ngateway=192.0.2.254\nhostname=a");
        let words = line.or(file);
        assert_eq!((words.address, words.gateway), (Some(AddressWord::Dhcp), None));
        assert_eq!(words.hostname.as_deref(), Some("a"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,300}") {
            parse_cmdline(&text);
            parse_file(&text);
        }
    }
}
