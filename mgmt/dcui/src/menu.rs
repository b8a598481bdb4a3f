//! The menu: tables of items, each with its explanation and what it opens. A new item is a new line here.

use keelson_api::Ipv4Setting;

use crate::app::{App, Opens};

/// One line of a menu.
pub(crate) struct Item {
    /// Its name.
    pub(crate) title: &'static str,
    /// What stands on the right: what it is for, and how things are now.
    pub(crate) explain: fn(&App) -> Vec<String>,
    /// What Enter opens.
    pub(crate) opens: Opens,
}

/// Which menu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// "System Customization".
    System,
    /// "Configure Management Network".
    Network,
}

impl Table {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::System => "System Customization",
            Self::Network => "Configure Management Network",
        }
    }

    pub(crate) fn items(self) -> &'static [Item] {
        match self {
            Self::System => SYSTEM,
            Self::Network => NETWORK,
        }
    }
}

static SYSTEM: &[Item] = &[
    Item { title: "Configure Password", explain: password, opens: Opens::Password },
    Item { title: "Configure Management Network", explain: network, opens: Opens::Menu(Table::Network) },
    Item { title: "Restart Management Network", explain: restart, opens: Opens::RestartNetwork },
    Item { title: "View System Logs", explain: logs, opens: Opens::Logs },
];

static NETWORK: &[Item] = &[
    Item { title: "IPv4 Configuration", explain: ipv4, opens: Opens::Ipv4 },
    Item { title: "DNS Configuration", explain: dns, opens: Opens::Dns },
    Item { title: "VMkernel Services", explain: services, opens: Opens::Services },
];

fn password(app: &App) -> Vec<String> {
    let state = if app.facts.password_set() == Some(false) { "Not set" } else { "Set" };
    vec![
        state.into(),
        String::new(),
        "The password of root, for this console, the API and keelctl. Changing it ends all other sessions."
            .into(),
    ]
}

fn network(app: &App) -> Vec<String> {
    let mut lines = vec![format!("Hostname: {}", app.facts.hostname())];
    lines.extend(app.facts.addresses());
    if let Some(network) = &app.facts.network {
        for nic in &network.1.nics {
            let link = match (nic.link, nic.speed_mbps) {
                (true, Some(speed)) => format!("connected, {speed} Mb/s"),
                (true, None) => "connected".into(),
                (false, _) => "no link".into(),
            };
            lines.push(format!("{}: {link}", nic.name));
        }
    }
    lines.extend([
        String::new(),
        "Address, name servers, host name and services of the adapter that this host is managed by.".into(),
    ]);
    lines
}

fn restart(_: &App) -> Vec<String> {
    vec![
        "Drops the management address and configures it anew; with DHCP, a new lease is asked for.".into(),
        String::new(),
        "Sessions over the network may break. VMs and their networks go on.".into(),
    ]
}

fn logs(_: &App) -> Vec<String> {
    vec!["What the kernel, init and the daemons have logged since power-on.".into()]
}

fn ipv4(app: &App) -> Vec<String> {
    let mut lines = match app.changes.ipv4(&app.facts) {
        Ipv4Setting::Disabled => vec!["Disabled".into()],
        Ipv4Setting::Dhcp => vec!["By DHCP".into()],
        Ipv4Setting::Static { address, gateway } => vec![
            "Static".into(),
            String::new(),
            format!("IPv4 Address:    {}", address.addr()),
            format!("Subnet Mask:     {}", address.netmask()),
            format!("Default Gateway: {}", gateway.map_or("none".into(), |g| g.to_string())),
        ],
    };
    note(&mut lines, app.changes.ipv4.is_some());
    lines
}

fn dns(app: &App) -> Vec<String> {
    let servers = app.changes.servers(&app.facts);
    let mut lines = vec![format!("Hostname: {}", app.changes.hostname(&app.facts)), String::new()];
    if servers.is_empty() {
        lines.push("Servers that DHCP gives".into());
        if let Some(network) = &app.facts.network {
            lines.extend(network.1.dns_servers.iter().map(|s| format!("  {s}")));
        }
    }
    lines.extend(servers.iter().map(|s| format!("DNS Server: {s}")));
    note(&mut lines, app.changes.servers.is_some() || app.changes.hostname.is_some());
    lines
}

fn services(app: &App) -> Vec<String> {
    let state = if app.changes.vmotion(&app.facts) { "Enabled" } else { "Disabled" };
    let mut lines = vec![
        "Management: Enabled".into(),
        format!("vMotion:    {state}"),
        String::new(),
        "With vMotion, running VMs can be moved to and from this host over this adapter. It stays off until it is switched on.".into(),
    ];
    note(&mut lines, app.changes.vmotion.is_some());
    lines
}

fn note(lines: &mut Vec<String>, changed: bool) {
    if changed {
        lines.extend([String::new(), "Changed, not applied yet.".into()]);
    }
}
