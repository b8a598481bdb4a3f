//! The daemon's loop: one place where the kernel's events, the clients' requests and the DHCP clients' news meet.
//!
//! Whatever happens, the answer is the same: observe, settle names and uplinks, plan, apply until the plan is empty, publish.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use keelson_init_control::HostWords;
use keelson_init_control::logging::chain;
use keelson_netcfg_control::{Ipv4, MacAddr, NetworkConfig, NetworkStatus, Problem};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::apply::{self, ApplyError};
use crate::clock::{self, Jitter};
use crate::control::{Ask, Published};
use crate::dhcp::run::{self, Command, News, Update};
use crate::dhcp::saved;
use crate::model::{BridgeSettings, Observed};
use crate::observe::{self, ObserveError};
use crate::pace::Pace;
use crate::plan::{Op, nics_up, plan};
use crate::seed::{self, WantedNic};
use crate::status::{self, Facts};
use crate::store::{Loaded, Store};
use crate::wanted::{self, Dynamic};
use crate::{announce, resolv};

/// Netlink events come in bursts; they are looked at together this long after the first.
const BURST: Duration = Duration::from_millis(20);
/// Links have had time to come up (autonegotiation takes up to about 3 s) after this long.
const SETTLED_AFTER: Duration = Duration::from_secs(4);
/// After a failure the kernel is left alone for this long.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// More rounds of observing and planning than ever needed: two are usual.
const ROUNDS: u32 = 5;

/// Where things are.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// What outlives netd but not the boot.
    pub(crate) run: PathBuf,
    /// What outlives the boot.
    pub(crate) state: PathBuf,
    pub(crate) resolv_conf: PathBuf,
}

/// Why the network is not as it is wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    #[error(transparent)]
    Observe(#[from] ObserveError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("the kernel does not keep what it was told; still to do: {0}")]
    Unsettled(String),
}

/// One DHCP client.
pub(crate) struct Slot {
    index: u32,
    mac: MacAddr,
    generation: u64,
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    link: Option<bool>,
}

/// The daemon.
pub(crate) struct Daemon {
    pub(crate) handle: Handle,
    ethtool: Option<ethtool::EthtoolHandle>,
    pub(crate) paths: Paths,
    pub(crate) store: Store,
    pub(crate) config: NetworkConfig,
    /// Whether a configuration is saved: then what netd picks by itself is saved as well.
    pub(crate) saved: bool,
    pub(crate) revision: u64,
    wanted_nic: Option<WantedNic>,
    fallback: MacAddr,
    pub(crate) vlan_filtering: bool,
    pub(crate) slots: BTreeMap<String, Slot>,
    pub(crate) updates: BTreeMap<String, Update>,
    generation: u64,
    news: mpsc::UnboundedSender<News>,
    pub(crate) observed: Observed,
    started: Instant,
    standing: Vec<Problem>,
    failure: Option<Problem>,
    published: Arc<Published>,
    /// Addresses that were added and are not announced yet: the link may be too new to be observed.
    unannounced: Vec<(String, Ipv4Addr)>,
}

/// Runs the daemon; returns only when the kernel's netlink sockets fail.
pub(crate) async fn run(
    paths: Paths,
    words: HostWords,
    mut asks: mpsc::UnboundedReceiver<Ask>,
    published: Arc<Published>,
) -> std::io::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];
    let (connection, _events_handle, mut events) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    let ethtool = match ethtool::new_connection() {
        Ok((connection, handle, _)) => {
            tokio::spawn(connection);
            Some(handle)
        }
        Err(e) => {
            log::warn!("the speeds of network adapters cannot be read: {e}");
            None
        }
    };
    let (news, mut heard) = mpsc::unbounded_channel();
    let mut daemon = Daemon::new(handle, ethtool, paths, &words, news, published);
    daemon.raise_nics().await;
    daemon.probe_vlan_filtering().await;
    daemon.retry().await;
    let mut pace = Pace::default();
    loop {
        let timer = [pace.due(), daemon.settling()].into_iter().flatten().min();
        tokio::select! {
            ask = asks.recv() => match ask {
                Some(ask) => {
                    let outcome = daemon.answer(ask.request).await;
                    // Who asked may have gone meanwhile.
                    let _ = ask.reply.send(outcome);
                }
                None => return Ok(()),
            },
            event = events.next() => match event {
                Some(_) => pace.happened(Instant::now(), daemon.pause()),
                None => return Err(std::io::Error::other("the kernel's link events ended")),
            },
            news = heard.recv() => if let Some(news) = news {
                daemon.hear(news).await;
            },
            () = until(timer) => {
                daemon.retry().await;
                pace.looked(Instant::now());
            }
        }
        if daemon.failure.is_some() {
            pace.by(Instant::now() + RETRY_AFTER);
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Daemon {
    fn new(
        handle: Handle,
        ethtool: Option<ethtool::EthtoolHandle>,
        paths: Paths,
        words: &HostWords,
        news: mpsc::UnboundedSender<News>,
        published: Arc<Published>,
    ) -> Self {
        let store = Store::new(&paths.state, &paths.run);
        let mut standing = Vec::new();
        let (config, saved, wanted_nic) = match store.load() {
            Loaded::Saved(config) => (config, true, None),
            Loaded::Fallback(previous, error) => {
                log::error!("{}", chain(&error));
                let (used, instead) = match previous {
                    Some(config) => ("the configuration before it is in force", config),
                    None => ("the default configuration is in force", seed::seed(words).0),
                };
                standing.push(Problem {
                    code: "network-file".into(),
                    message: format!("{}; {used}.", chain(&error)),
                    remedy: "Configure the management network again; that writes a new file.".into(),
                });
                // Not saved over: a newer version of Keelson may want its document back.
                (instead, false, None)
            }
            Loaded::Nothing => {
                let (config, nic, problems) = seed::seed(words);
                standing.extend(problems);
                (config, false, nic)
            }
        };
        let [_, _, a, b, c, d, e, f] = Jitter::seeded().next().to_be_bytes();
        Self {
            handle,
            ethtool,
            paths,
            store,
            config,
            saved,
            revision: 0,
            wanted_nic,
            fallback: MacAddr([a & !3, b, c, d, e, f]),
            vlan_filtering: false,
            slots: BTreeMap::new(),
            updates: BTreeMap::new(),
            generation: 0,
            news,
            observed: Observed::default(),
            started: Instant::now(),
            standing,
            failure: None,
            published,
            unannounced: Vec::new(),
        }
    }

    /// Brings the NICs up before anything else is done: what follows is done while their links come up.
    async fn raise_nics(&mut self) {
        if self.observe().await.is_err() {
            // It is said when the whole is tried.
            return;
        }
        self.settle();
        let wanted =
            wanted::wanted(&self.config, &self.dynamic(), &self.observed, self.vlan_filtering, self.fallback);
        for op in nics_up(&wanted, &self.observed) {
            log::info!("{op}");
            if let Err(e) = self.apply(&op).await {
                log::warn!("{}", chain(&e));
            }
        }
    }

    /// Finds out whether this kernel's bridges filter VLANs: only a bridge tells, so one is made where there is none.
    async fn probe_vlan_filtering(&mut self) {
        let no_speeds = BTreeMap::new();
        let mut seen = observe::observe(&self.handle, &no_speeds).await.ok().and_then(|o| o.vlan_filtering());
        if seen.is_none() {
            let settings = BridgeSettings {
                stp: false,
                forward_delay: 0,
                multicast_snooping: false,
                vlan_filtering: false,
                default_pvid: None,
            };
            let create =
                Op::CreateBridge { name: "vlanprobe".into(), mac: MacAddr([2, 0, 0, 0, 0, 1]), settings };
            if let Err(e) = apply::apply(&self.handle, &create).await {
                log::error!("this kernel makes no bridge: {}", chain(&e));
            }
            seen = observe::observe(&self.handle, &no_speeds).await.ok().and_then(|o| o.vlan_filtering());
            let _ = apply::apply(&self.handle, &Op::Delete { link: "vlanprobe".into() }).await;
        }
        self.vlan_filtering = seen.unwrap_or(false);
        if !self.vlan_filtering {
            log::warn!("this kernel's bridges do not filter VLANs: port groups can only be untagged");
        }
    }

    fn settled(&self) -> bool {
        self.started.elapsed() >= SETTLED_AFTER
    }

    /// When to look again because links will have had time to come up.
    fn settling(&self) -> Option<Instant> {
        (!self.settled()).then_some(self.started + SETTLED_AFTER)
    }

    fn pause(&self) -> Duration {
        if self.failure.is_some() { RETRY_AFTER } else { BURST }
    }

    /// Makes the network as it is wanted; a failure becomes a problem that everybody sees.
    pub(crate) async fn retry(&mut self) {
        let failure = self.reconcile().await.err().map(|e| {
            log::error!("{}", chain(&e));
            Problem {
                code: "network-failed".into(),
                message: format!("The network is not as it is configured: {}.", chain(&e)),
                remedy:
                    "Keelson tries again every few seconds; see the log of netd, or change the configuration."
                        .into(),
            }
        });
        if self.failure != failure {
            self.failure = failure;
            self.publish();
        }
    }

    /// Observes, plans and applies until there is nothing left to do.
    pub(crate) async fn reconcile(&mut self) -> Result<(), ReconcileError> {
        for _ in 0..ROUNDS {
            self.observe().await?;
            self.settle();
            let ops = self.plan();
            if ops.is_empty() {
                for (name, address) in std::mem::take(&mut self.unannounced) {
                    if let Some(link) =
                        self.observed.link(&name).filter(|l| l.addresses.iter().any(|a| a.addr() == address))
                    {
                        tokio::spawn(announce::announce(name, link.index, link.mac, address));
                    }
                }
                self.manage_clients();
                let (servers, search) = status::resolver(&self.config, &self.updates);
                resolv::write(&self.paths.resolv_conf, &servers, &search);
                self.publish();
                return Ok(());
            }
            for op in &ops {
                log::info!("{op}");
                self.apply(op).await?;
            }
        }
        self.observe().await?;
        let left: Vec<String> = self.plan().iter().map(Op::to_string).collect();
        Err(ReconcileError::Unsettled(left.join(", ")))
    }

    async fn observe(&mut self) -> Result<(), ObserveError> {
        let speeds = match &mut self.ethtool {
            Some(handle) => observe::speeds(handle).await,
            None => BTreeMap::new(),
        };
        self.observed = observe::observe(&self.handle, &speeds).await?;
        Ok(())
    }

    fn plan(&self) -> Vec<Op> {
        let wanted =
            wanted::wanted(&self.config, &self.dynamic(), &self.observed, self.vlan_filtering, self.fallback);
        plan(&wanted, &self.observed)
    }

    pub(crate) async fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        apply::apply(&self.handle, op).await?;
        if let Op::AddAddress { link, address } = op {
            self.unannounced.push((link.clone(), address.addr()));
        }
        Ok(())
    }

    /// Names, uplinks and MAC addresses; saved when there is a saved configuration that they belong to.
    fn settle(&mut self) {
        let before = self.config.clone();
        let settled = self.settled();
        if let Some(nic) = self.wanted_nic.take() {
            self.config.nics = crate::names::name_nics(&self.config.nics, &self.observed.nics());
            if !seed::use_nic(&mut self.config, &nic) {
                if settled {
                    let what = match &nic {
                        WantedNic::Name(name) => name.clone(),
                        WantedNic::Mac(mac) => mac.to_string(),
                    };
                    self.standing.push(Problem {
                        code: "word-ignored".into(),
                        message: format!("the host word `nic` is ignored: this host has no network adapter {what}"),
                        remedy: "Correct it on the kernel command line or in keelson.conf, or choose the adapter on the console.".into(),
                    });
                } else {
                    // Its driver may still be on the way.
                    self.wanted_nic = Some(nic);
                    return;
                }
            }
        }
        wanted::settle(&mut self.config, &self.observed, settled);
        if self.config != before {
            self.revision += 1;
            let saved = if self.saved { self.store.save(&self.config) } else { Ok(()) };
            if let Err(e) = saved {
                log::error!("the names of network adapters could not be saved: {e}");
            }
        }
    }

    /// The address of each adapter that has one by DHCP or RFC 3927. Until its client has spoken, what an earlier netd left counts.
    fn dynamic(&self) -> BTreeMap<String, Dynamic> {
        let adapters = self.config.vmkernel_adapters.iter().filter(|a| a.ipv4 == Ipv4::Dhcp);
        let known = adapters.filter_map(|adapter| {
            let dynamic = match self.updates.get(&adapter.name) {
                Some(update) => update.address,
                None => {
                    let link = self.observed.link(&adapter.name)?;
                    match saved::load(&self.paths.run, &adapter.name, link.mac) {
                        Some(lease) => Some(Dynamic { address: lease.address, gateway: lease.gateway }),
                        None => {
                            let local = link.addresses.iter().find(|a| a.addr().is_link_local());
                            local.map(|address| Dynamic { address: *address, gateway: None })
                        }
                    }
                }
            };
            Some((adapter.name.clone(), dynamic?))
        });
        known.collect()
    }

    /// Starts and ends DHCP clients, and tells them whether their network is there.
    fn manage_clients(&mut self) {
        let dhcp: BTreeMap<String, String> = self
            .config
            .vmkernel_adapters
            .iter()
            .filter(|a| a.ipv4 == Ipv4::Dhcp)
            .filter_map(|a| {
                let group = self.config.port_groups.iter().find(|g| g.name == a.port_group)?;
                Some((a.name.clone(), group.vswitch.clone()))
            })
            .collect();
        let gone: Vec<String> = self.slots.keys().filter(|name| !dhcp.contains_key(*name)).cloned().collect();
        for name in gone {
            self.end_client(&name);
        }
        for (name, switch) in dhcp {
            let Some(link) = self.observed.link(&name).cloned() else { continue };
            let current = self.slots.get(&name).is_some_and(|s| s.index == link.index && s.mac == link.mac);
            if !current {
                self.start_client(&name, &link);
            }
            let linked = status::switch_passes(&self.config, &self.observed, &switch);
            if let Some(slot) = self.slots.get_mut(&name).filter(|s| s.link != Some(linked)) {
                slot.link = Some(linked);
                let _ = slot.commands.send(Command::Link(linked));
            }
        }
    }

    fn start_client(&mut self, name: &str, link: &crate::model::Link) {
        self.generation += 1;
        let generation = self.generation;
        let (commands, receiver) = mpsc::unbounded_channel();
        let slot = Slot { index: link.index, mac: link.mac, generation, commands, link: None };
        // The client before, if any, ends as its sender is dropped.
        self.slots.insert(name.into(), slot);
        let adapter = run::Adapter {
            name: name.into(),
            index: link.index,
            mac: link.mac,
            generation,
            link_local: link.addresses.iter().map(ipnet::Ipv4Net::addr).find(Ipv4Addr::is_link_local),
            run: self.paths.run.clone(),
        };
        let news = self.news.clone();
        let name = name.to_owned();
        tokio::spawn(async move {
            if let Err(e) = run::run(adapter, receiver, news.clone()).await {
                log::error!("the DHCP client of {name} failed: {e}");
                tokio::time::sleep(RETRY_AFTER).await;
                let _ = news.send(Err((name, generation)));
            }
        });
    }

    /// Ends a client and forgets its lease.
    pub(crate) fn end_client(&mut self, name: &str) {
        self.updates.remove(name);
        if let Some(slot) = self.slots.remove(name) {
            saved::save(&self.paths.run, name, slot.mac, None);
        }
    }

    /// Takes a DHCP client's news.
    async fn hear(&mut self, news: News) {
        let (name, generation) = match &news {
            Ok(update) => (&update.adapter, update.generation),
            Err((name, generation)) => (name, *generation),
        };
        if self.slots.get(name).is_none_or(|s| s.generation != generation) {
            return;
        }
        match news {
            Ok(update) => {
                tell(self.updates.get(&update.adapter), &update);
                self.updates.insert(update.adapter.clone(), update);
            }
            Err((name, _)) => {
                self.slots.remove(&name);
            }
        }
        self.retry().await;
    }

    /// The network as it is.
    pub(crate) fn status(&self) -> NetworkStatus {
        status::status(Facts {
            config: &self.config,
            observed: &self.observed,
            clients: &self.updates,
            revision: self.revision,
            settled: self.settled(),
            problems: self.standing.iter().chain(&self.failure).cloned().collect(),
            now: clock::boottime(),
        })
    }

    pub(crate) fn publish(&self) {
        self.published.publish(&self.config, &self.status());
    }

    /// A document that could not be used has been replaced by one that can.
    pub(crate) fn document_is_good(&mut self) {
        self.saved = true;
        self.standing.retain(|p| p.code != "network-file" && p.code != "word-ignored");
    }
}

/// Logs what a person reading the log wants to know of an adapter's address.
fn tell(before: Option<&Update>, now: &Update) {
    let lease = |u: &Update| u.lease.as_ref().map(|l| (l.address, l.server));
    match (before.and_then(lease), lease(now)) {
        (old, Some((address, server))) if old != Some((address, server)) => {
            log::info!("{} has {address} from the DHCP server {server}", now.adapter);
        }
        (Some((address, _)), None) => log::warn!("{} lost its lease of {address}", now.adapter),
        _ => {}
    }
    if now.unanswered && !before.is_some_and(|b| b.unanswered) {
        log::warn!("{} gets no address by DHCP", now.adapter);
    }
    let new_address =
        now.address.filter(|a| now.lease.is_none() && before.and_then(|b| b.address) != Some(*a));
    if let Some(local) = new_address {
        log::warn!("{} uses the link-local address {} meanwhile", now.adapter, local.address);
    }
    if let Some(error) = now
        .status
        .last_error
        .as_ref()
        .filter(|e| before.and_then(|b| b.status.last_error.as_ref()) != Some(*e))
    {
        log::warn!("{}: {error}", now.adapter);
    }
}
