//! What the console knows of its host, from init, netd, hostd and the kernel.

use keelson_api::{Host, Identity};
use keelson_init_control::{Boot, PowerAction, UnitId, UnitState, UnitStatus};
use keelson_netcfg_control::{AddressOrigin, NetworkConfig, NetworkStatus, VmkAdapter};

/// Whether a daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Link {
    /// Not asked yet.
    #[default]
    Waiting,
    /// It answers.
    Up,
    /// It does not; why.
    Down(String),
}

/// One piece of news.
#[derive(Debug, Clone)]
pub(crate) enum Fact {
    /// The host as hostd shows it, or why hostd does not.
    Host(Result<Box<Host>, String>),
    /// hostd shows its identity, but not the host.
    Identity(Box<Identity>),
    /// The network as netd shows it, or why netd does not.
    Network(Result<Box<(NetworkConfig, NetworkStatus)>, String>),
    /// How the boot went, as init tells, or why init does not.
    Boot(Result<Box<Boot>, String>),
    /// A unit's state.
    Unit(Box<UnitStatus>),
    /// The host is going down.
    GoingDown(PowerAction),
    /// What the kernel says of the machine.
    Hardware(Hardware),
}

/// What the kernel says of the machine; shown until hostd says more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hardware {
    /// The host's name.
    pub(crate) hostname: String,
    /// The processors' model.
    pub(crate) cpu: String,
    /// Logical processors.
    pub(crate) threads: u32,
    /// Memory, in bytes.
    pub(crate) memory: u64,
}

impl Hardware {
    /// Reads it out of `/proc/cpuinfo` and `/proc/meminfo`.
    pub(crate) fn parse(hostname: String, cpuinfo: &str, meminfo: &str) -> Self {
        let value = |line: &str| line.split_once(':').map(|(_, v)| v.trim().to_owned()).unwrap_or_default();
        let cpu = cpuinfo.lines().find(|l| l.starts_with("model name")).map(value).unwrap_or_default();
        let threads =
            u32::try_from(cpuinfo.lines().filter(|l| l.starts_with("processor")).count()).unwrap_or(u32::MAX);
        let total = meminfo.lines().find(|l| l.starts_with("MemTotal:")).map(value).unwrap_or_default();
        let kib: u64 = total.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
        Self { hostname, cpu, threads, memory: kib.saturating_mul(1024) }
    }
}

/// What a person should know, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) remedy: String,
}

impl Notice {
    fn new(code: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), remedy: remedy.into() }
    }
}

/// All that is known. What a daemon said last stays when it goes: an old address is better than none, and the notices say so.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) hostd: Link,
    pub(crate) netd: Link,
    pub(crate) init: Link,
    pub(crate) identity: Option<Identity>,
    pub(crate) host: Option<Box<Host>>,
    pub(crate) network: Option<Box<(NetworkConfig, NetworkStatus)>>,
    pub(crate) boot: Option<Box<Boot>>,
    pub(crate) units: Vec<UnitStatus>,
    pub(crate) hardware: Hardware,
    pub(crate) going_down: Option<PowerAction>,
}

impl Facts {
    /// Takes in one piece of news.
    pub(crate) fn learn(&mut self, fact: Fact) {
        match fact {
            Fact::Host(Ok(host)) => {
                self.hostd = Link::Up;
                self.identity = Some(host.identity.clone());
                self.host = Some(host);
            }
            Fact::Host(Err(why)) => self.hostd = Link::Down(why),
            Fact::Identity(identity) => {
                self.hostd = Link::Up;
                self.identity = Some(*identity);
            }
            Fact::Network(Ok(network)) => {
                self.netd = Link::Up;
                self.network = Some(network);
            }
            Fact::Network(Err(why)) => self.netd = Link::Down(why),
            Fact::Boot(Ok(boot)) => {
                self.init = Link::Up;
                self.boot = Some(boot);
            }
            Fact::Boot(Err(why)) => {
                self.init = Link::Down(why);
                self.units.clear();
            }
            Fact::Unit(unit) => {
                self.units.retain(|u| u.id != unit.id);
                self.units.push(*unit);
            }
            Fact::GoingDown(action) => self.going_down = Some(action),
            Fact::Hardware(hardware) => self.hardware = hardware,
        }
    }

    /// The product's version.
    pub(crate) fn version(&self) -> &str {
        match (&self.identity, &self.boot) {
            (Some(identity), _) => &identity.version,
            (_, Some(boot)) if !boot.version.is_empty() => &boot.version,
            _ => env!("CARGO_PKG_VERSION"),
        }
    }

    /// The host's name.
    pub(crate) fn hostname(&self) -> &str {
        self.identity.as_ref().map_or(&self.hardware.hostname, |i| &i.hostname)
    }

    /// Whether root has a password, if that is known.
    pub(crate) fn password_set(&self) -> Option<bool> {
        self.identity.as_ref().map(|i| i.password_set)
    }

    /// The management adapter as it is wanted: the first that carries management, else the first.
    pub(crate) fn management(&self) -> Option<&VmkAdapter> {
        let adapters = &self.network.as_ref()?.0.vmkernel_adapters;
        adapters
            .iter()
            .find(|a| a.services.contains(&keelson_netcfg_control::Service::Management))
            .or(adapters.first())
    }

    /// The addresses to manage the host by, with how they were obtained.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let Some(network) = &self.network else { return Vec::new() };
        let management = |name: &str| {
            let wanted = network.0.vmkernel_adapters.iter().find(|a| a.name == name);
            wanted.is_none_or(|a| a.services.contains(&keelson_netcfg_control::Service::Management))
        };
        let mut lines = Vec::new();
        for adapter in network.1.vmkernel_adapters.iter().filter(|a| management(&a.name)) {
            for (n, address) in adapter.addresses.iter().enumerate() {
                let origin = match adapter.origin {
                    _ if address.addr().is_link_local() => "LINK-LOCAL",
                    AddressOrigin::Dhcp if n == 0 => "DHCP",
                    AddressOrigin::Static if n == 0 => "STATIC",
                    AddressOrigin::LinkLocal if n == 0 => "LINK-LOCAL",
                    _ => "ADDITIONAL",
                };
                lines.push(format!("https://{}/ ({origin})", address.addr()));
            }
        }
        lines
    }

    /// What a person should know, the most pressing first.
    pub(crate) fn notices(&self) -> Vec<Notice> {
        let mut notices = Vec::new();
        if self.password_set() == Some(false) {
            notices.push(Notice::new(
                "password-not-set",
                "No password is set for root: over the network this host tells only its identity and health.",
                "Press <F2> to set one.",
            ));
        }
        self.absent_daemons(&mut notices);
        let known = match (&self.hostd, &self.host) {
            (Link::Up, Some(host)) => {
                host.conditions.iter().map(|c| Notice::new(&c.code, &c.message, &c.remedy)).collect()
            }
            _ => self.without_hostd(),
        };
        for notice in known {
            if !notices.iter().any(|n| n.code == notice.code && n.message == notice.message) {
                notices.push(notice);
            }
        }
        notices
    }

    fn absent_daemons(&self, notices: &mut Vec<Notice>) {
        if let Link::Down(why) = &self.init {
            notices.push(Notice::new(
                "init-silent",
                format!("init does not answer: {why}."),
                "The host may go on running; restart it when it can be spared.",
            ));
        }
        for (link, id, code, what) in [
            (&self.netd, UnitId::Netd, "netd-silent", "The network daemon"),
            (&self.hostd, UnitId::Hostd, "hostd-silent", "The host agent"),
        ] {
            let Link::Down(why) = link else { continue };
            let unit = self.units.iter().find(|u| u.id == id);
            let (message, remedy) = match unit {
                Some(unit) => {
                    let last = unit.exits.last().map(|e| format!("; it {}", e.exit)).unwrap_or_default();
                    match unit.state {
                        UnitState::Running => (
                            format!("{what} ({id}) does not answer: {why}."),
                            "It is running; this may pass by itself.",
                        ),
                        UnitState::Stopping => (format!("{what} ({id}) is stopping."), "Wait for it."),
                        UnitState::Backoff { .. } => {
                            (format!("{what} ({id}) is not running{last}."), "It is started again by itself.")
                        }
                        UnitState::Ended => (format!("{what} ({id}) has ended{last}."), "Restart the host."),
                    }
                }
                None => (format!("{what} ({id}) does not answer: {why}."), "It is started again by itself."),
            };
            notices.push(Notice::new(code, message, remedy));
        }
    }

    /// The same from init and netd themselves, while hostd does not gather it.
    fn without_hostd(&self) -> Vec<Notice> {
        let mut notices = Vec::new();
        if let Some(network) = &self.network {
            notices.extend(network.1.problems.iter().map(|p| Notice::new(&p.code, &p.message, &p.remedy)));
        }
        if let Some(boot) = &self.boot {
            notices.extend(boot.problems.iter().map(|p| Notice::new(&p.code, &p.message, &p.remedy)));
            notices.extend(
                boot.word_errors.iter().map(|e| {
                    Notice::new("word-ignored", format!("{e}."), "Correct it and restart the host.")
                }),
            );
        }
        notices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hardware_is_read() {
        let cpuinfo =
            "processor\t: 0\nmodel name\t: AMD EPYC 7003\n\nprocessor\t: 1\nmodel name\t: AMD EPYC 7003\n";
        let got = Hardware::parse("h".into(), cpuinfo, "MemFree: 1 kB\nMemTotal:        2048000 kB\n");
        assert_eq!(
            got,
            Hardware { hostname: "h".into(), cpu: "AMD EPYC 7003".into(), threads: 2, memory: 2_097_152_000 }
        );
    }

    proptest! {
        #[test]
        fn any_proc_text_is_survived(a: String, b: String) {
            let _ = Hardware::parse(String::new(), &a, &b);
        }
    }
}
