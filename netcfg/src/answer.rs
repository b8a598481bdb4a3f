//! What netd does for each request of its control socket.

use keelson_init_control::logging::chain;
use keelson_netcfg_control::{Answer, NetworkConfig, PortGroup, Refusal, Request, Service, Uplinks};
use uuid::Uuid;

use crate::apply;
use crate::control::Outcome;
use crate::daemon::{Daemon, ReconcileError};
use crate::dhcp::run::Command;
use crate::model::Link;
use crate::names;
use crate::plan::Op;
use crate::taps::{self, MAX_ALIAS, TapAlias};

impl Daemon {
    /// Carries out a request. A refusal has changed nothing, or what it changed was put back.
    pub(crate) async fn answer(&mut self, request: Request) -> Outcome {
        match request {
            Request::Get => {
                let (config, status) = (self.config.clone(), self.status());
                Ok((Answer::Network { config: Box::new(config), status: Box::new(status) }, None))
            }
            Request::Set { config, revision } => {
                self.set(*config, revision).await?;
                Ok((Answer::Done, None))
            }
            Request::Restart => {
                self.restart().await?;
                Ok((Answer::Done, None))
            }
            Request::OpenTap { vm, index, port_group } => self.open_tap(vm, index, port_group).await,
            Request::CloseTaps { vm } => {
                self.close_taps(vm, None).await?;
                Ok((Answer::Done, None))
            }
            // The control thread serves watchers by itself.
            Request::Watch => Ok((Answer::Done, None)),
        }
    }

    async fn set(&mut self, config: NetworkConfig, revision: Option<u64>) -> Result<(), Refusal> {
        if let Some(based_on) = revision.filter(|r| *r != self.revision) {
            return Err(Refusal::Stale { based_on, now: self.revision });
        }
        config.validate().map_err(Refusal::BadConfig)?;
        supported(&config, self.vlan_filtering)?;
        self.keeps_taps(&config)?;
        let before = std::mem::replace(&mut self.config, config);
        let moved = moved_adapters(&before, &self.config);
        if let Err(e) = self.reconcile().await {
            log::error!("the new configuration failed: {}; the previous one comes back", chain(&e));
            self.config = before;
            self.retry().await;
            return Err(failed("the change of the network", &e));
        }
        self.revision += 1;
        for name in moved {
            if let Some(slot) = self.slots.get(&name) {
                // Another network: the lease of the one before means nothing here.
                let _ = slot.commands.send(Command::Restart);
            }
        }
        let saved = self.store.save(&self.config);
        if saved.is_ok() {
            self.document_is_good();
        }
        self.publish();
        saved.map_err(|e| Refusal::NotSaved(e.to_string()))
    }

    /// Taps belong to running guests: their port groups cannot go.
    fn keeps_taps(&self, config: &NetworkConfig) -> Result<(), Refusal> {
        for alias in self.observed.links.iter().filter_map(Link::tap) {
            if !config.port_groups.iter().any(|g| g.name == alias.port_group) {
                return Err(Refusal::BadConfig(keelson_netcfg_control::ConfigError {
                    field: "port_groups".into(),
                    problem: format!(
                        "`{}` cannot be removed or renamed: the running virtual machine {} uses it",
                        alias.port_group, alias.vm
                    ),
                }));
            }
        }
        Ok(())
    }

    /// Restarts the management network.
    async fn restart(&mut self) -> Result<(), Refusal> {
        let names: Vec<String> =
            self.config.with_service(Service::Management).map(|a| a.name.clone()).collect();
        for name in names {
            if let Some(slot) = self.slots.get(&name) {
                let _ = slot.commands.send(Command::Restart);
            }
            if let Some(update) = self.updates.get_mut(&name) {
                update.address = None;
                update.lease = None;
            }
            let addresses = self.observed.link(&name).map(|l| l.addresses.clone()).unwrap_or_default();
            for address in addresses {
                let op = Op::RemoveAddress { link: name.clone(), address };
                log::info!("{op}");
                if let Err(e) = self.apply(&op).await {
                    log::warn!("{}", chain(&e));
                }
            }
        }
        self.reconcile().await.map_err(|e| failed("restarting the management network", &e))
    }

    async fn open_tap(&mut self, vm: Uuid, index: u32, port_group: String) -> Outcome {
        let what = || format!("making a network adapter for the virtual machine {vm}");
        if !self.config.port_groups.iter().any(|g| g.name == port_group) {
            let existing = self.config.port_groups.iter().map(|g| g.name.clone()).collect();
            return Err(Refusal::NoSuchPortGroup { name: port_group, existing });
        }
        let alias = TapAlias { vm, index, port_group }.to_string();
        if alias.len() > MAX_ALIAS {
            let why = format!("the port group's name takes {} bytes too many", alias.len() - MAX_ALIAS);
            return Err(Refusal::Failed { what: what(), why });
        }
        self.close_taps(vm, Some(index)).await?;
        let name = names::first_free("vmtap", self.observed.links.iter().map(|l| l.name.as_str()));
        let io = |e: std::io::Error| Refusal::Failed {
            what: what(),
            why: format!("/dev/net/tun made no tap {name}: {e}"),
        };
        let tap = taps::open(&name).map_err(io)?;
        // From here on an error drops the descriptor, and the tap with it.
        let named = apply::set_alias(&self.handle, &name, &alias).await;
        named.map_err(|e| Refusal::Failed { what: what(), why: chain(&e) })?;
        if let Err(e) = self.reconcile().await {
            drop(tap);
            self.retry().await;
            return Err(failed(&what(), &e));
        }
        Ok((Answer::Tap { name }, Some(tap)))
    }

    /// Removes a VM's taps, or the one of this number.
    async fn close_taps(&mut self, vm: Uuid, index: Option<u32>) -> Result<(), Refusal> {
        let names = self.observed.links.iter().filter_map(|l| {
            let alias = l.tap()?;
            (alias.vm == vm && index.is_none_or(|i| i == alias.index)).then(|| l.name.clone())
        });
        for link in names.collect::<Vec<_>>() {
            let op = Op::Delete { link };
            log::info!("{op}");
            // One that vanished meanwhile is as good as removed; the next observation tells.
            if let Err(e) = self.apply(&op).await {
                log::debug!("{}", chain(&e));
            }
        }
        self.reconcile()
            .await
            .map_err(|e| failed(&format!("removing the network adapters of the virtual machine {vm}"), &e))
    }
}

/// Which adapters a new configuration puts onto another network, or lets ask for an address for the first time.
fn moved_adapters(before: &NetworkConfig, now: &NetworkConfig) -> Vec<String> {
    fn place<'a>(config: &'a NetworkConfig, adapter: &str) -> Option<(&'a PortGroup, &'a Uplinks)> {
        let adapter = config.vmkernel_adapters.iter().find(|a| a.name == adapter)?;
        let group = config.port_groups.iter().find(|g| g.name == adapter.port_group)?;
        let switch = config.vswitches.iter().find(|s| s.name == group.vswitch)?;
        Some((group, &switch.uplinks))
    }
    let network =
        |config, name: &str| place(config, name).map(|(g, u)| (g.vlan, g.vswitch.clone(), u.clone()));
    let names = now.vmkernel_adapters.iter().map(|a| a.name.clone());
    names.filter(|n| network(before, n).is_some() && network(before, n) != network(now, n)).collect()
}

/// What needs the kernel's help and does not get it.
fn supported(config: &NetworkConfig, vlan_filtering: bool) -> Result<(), Refusal> {
    match config.port_groups.iter().find(|g| g.vlan != 0) {
        Some(group) if !vlan_filtering => Err(Refusal::NotSupported(format!(
            "VLAN {} of the port group `{}` needs a bridge that filters VLANs, which it does not have; use VLAN 0",
            group.vlan, group.name
        ))),
        _ => Ok(()),
    }
}

fn failed(what: &str, error: &ReconcileError) -> Refusal {
    match error {
        ReconcileError::Apply(e) => Refusal::Failed { what: e.op.clone(), why: chain(&e.source) },
        other => Refusal::Failed { what: what.into(), why: chain(other) },
    }
}
