//! Carrying operations out, exactly those of a plan and in its order. The first that fails ends it and is named.

use std::io;
use std::net::Ipv4Addr;

use rtnetlink::packet_route::link::{BridgeStpState, BridgeVlanInfoFlags, LinkMessage};
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::{
    Handle, LinkBridge, LinkBridgeVlan, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use crate::model::{BridgeSettings, DefaultRoute};
use crate::plan::Op;

/// Which operation failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("to {op} failed")]
pub(crate) struct ApplyError {
    /// The operation, in words.
    pub(crate) op: String,
    #[source]
    pub(crate) source: Cause,
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error("there is no interface {0}")]
    NoLink(String),
    #[error(transparent)]
    Netlink(#[from] rtnetlink::Error),
    #[error("{path} could not be written")]
    File {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Carries out one operation.
pub(crate) async fn apply(handle: &Handle, op: &Op) -> Result<(), ApplyError> {
    run(handle, op).await.map_err(|source| ApplyError { op: op.to_string(), source })
}

fn index(name: &str) -> Result<u32, Cause> {
    nix::net::if_::if_nametoindex(name).map_err(|_| Cause::NoLink(name.into()))
}

async fn change(
    handle: &Handle,
    name: &str,
    build: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
) -> Result<(), Cause> {
    let message: LinkMessage = build(LinkUnspec::new_with_index(index(name)?)).build();
    Ok(handle.link().change(message).execute().await?)
}

async fn run(handle: &Handle, op: &Op) -> Result<(), Cause> {
    match op {
        Op::Delete { link } => handle.link().del(index(link)?).execute().await?,
        Op::Rename { from, to } => change(handle, from, |l| l.name(to.clone())).await?,
        Op::CreateBridge { name, mac, settings } => {
            // The MAC address given at creation pins it: a bridge that has one does not take the lowest of its ports'.
            let builder = LinkMessageBuilder::<LinkBridge>::new(name).address(mac.0.to_vec());
            handle.link().add(bridge(builder, settings).build()).execute().await?;
        }
        Op::SetBridge { name, settings } => {
            let builder = LinkMessageBuilder::<LinkBridge>::new(name).index(index(name)?);
            handle.link().change(bridge(builder, settings).build()).execute().await?;
        }
        Op::CreateVeth { name, peer, mac } => {
            handle.link().add(LinkVeth::new(name, peer).address(mac.0.to_vec()).build()).execute().await?;
        }
        Op::SetMac { link, mac } => change(handle, link, |l| l.address(mac.0.to_vec())).await?,
        Op::SetMtu { link, mtu } => change(handle, link, |l| l.mtu(*mtu)).await?,
        Op::Ipv6Off { link } => {
            // Not the address generation mode: a link without one still takes addresses from router advertisements.
            let path = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
            std::fs::write(&path, "1").map_err(|source| Cause::File { path, source })?;
        }
        Op::Up { link } => change(handle, link, LinkMessageBuilder::up).await?,
        Op::Attach { port, bridge } => {
            let bridge = index(bridge)?;
            change(handle, port, |l| l.controller(bridge)).await?;
        }
        Op::Detach { port } => change(handle, port, LinkMessageBuilder::nocontroller).await?,
        Op::AddVlan { port, vid, own } => {
            let flags = if *own {
                BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged
            } else {
                BridgeVlanInfoFlags::empty()
            };
            handle.link().set(LinkBridgeVlan::new(index(port)?).vlan(*vid, flags).build()).execute().await?;
        }
        Op::RemoveVlan { port, vid } => {
            let message = LinkBridgeVlan::new(index(port)?).vlan(*vid, BridgeVlanInfoFlags::empty()).build();
            handle.link().del_with_message(message).execute().await?;
        }
        Op::RemoveAddress { link, address } => {
            let mut request = handle.address().add(index(link)?, address.addr().into(), address.prefix_len());
            let message = request.message_mut().clone();
            handle.address().del(message).execute().await?;
        }
        Op::AddAddress { link, address } => {
            handle.address().add(index(link)?, address.addr().into(), address.prefix_len()).execute().await?;
        }
        Op::RemoveDefaultRoute { route } => handle.route().del(default_route(route)?).execute().await?,
        Op::AddDefaultRoute { route } => handle.route().add(default_route(route)?).execute().await?,
    }
    Ok(())
}

fn bridge(
    builder: LinkMessageBuilder<LinkBridge>,
    settings: &BridgeSettings,
) -> LinkMessageBuilder<LinkBridge> {
    let builder = builder
        .stp_state(if settings.stp { BridgeStpState::KernelStp } else { BridgeStpState::Disabled })
        .forward_delay(settings.forward_delay)
        .mcast_snooping(settings.multicast_snooping);
    // A kernel without VLAN filtering refuses even to be told to leave it off.
    match settings.default_pvid {
        Some(pvid) => builder.vlan_filtering(settings.vlan_filtering).vlan_default_pvid(pvid),
        None => builder,
    }
}

fn default_route(route: &DefaultRoute) -> Result<rtnetlink::packet_route::route::RouteMessage, Cause> {
    // On-link: some DHCP servers give a gateway outside the prefix, which the kernel would otherwise refuse.
    Ok(RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(index(&route.link)?)
        .gateway(route.gateway)
        .priority(route.metric)
        .protocol(RouteProtocol::Static)
        .onlink()
        .build())
}

/// Writes an interface's alias: done when a tap is made, so no plan needs it.
pub(crate) async fn set_alias(handle: &Handle, link: &str, alias: &str) -> Result<(), ApplyError> {
    let set = change(handle, link, |l| l.alias(alias)).await;
    set.map_err(|source| ApplyError { op: format!("write the alias of {link}"), source })
}
