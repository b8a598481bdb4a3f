//! Routes of the network.

use std::sync::Arc;

use keelson_api::{AdapterUpdate, NetworkUpdate};

use crate::http::{Access, Method, Response, Router};
use crate::services::Services;

pub(super) fn install(router: &mut Router, services: &Arc<Services>) {
    let s = Arc::clone(services);
    router.route(Method::Get, "/network", Access::Root, move |request, _| {
        request.only_query(&[])?;
        Response::ok(&s.netd.network()?)
    });
    let s = Arc::clone(services);
    router.route(Method::Patch, "/network", Access::Root, move |request, _| {
        request.only_query(&[])?;
        let update: NetworkUpdate = request.json()?;
        Response::ok(&s.netd.change(&update)?)
    });
    let s = Arc::clone(services);
    router.route(Method::Patch, "/network/vmkernel-adapters/{name}", Access::Root, move |request, params| {
        request.only_query(&[])?;
        let update: AdapterUpdate = request.json()?;
        Response::ok(&s.netd.change_adapter(params.get("name"), &update)?)
    });
    let s = Arc::clone(services);
    router.route(Method::Post, "/network/restart", Access::Root, move |request, _| {
        request.only_query(&[])?;
        Response::json(202, &s.restart_network(request.caller.who())?)
    });
}
