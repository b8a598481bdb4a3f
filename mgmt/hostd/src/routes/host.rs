//! Routes of the host itself: facts, name, logs, power.

use std::sync::Arc;

use keelson_api::{HostPower, HostUpdate};

use crate::http::{Access, Method, Response, Router};
use crate::logs::DEFAULT_LINES;
use crate::services::Services;

pub(super) fn install(router: &mut Router, services: &Arc<Services>) {
    let s = Arc::clone(services);
    router.route(Method::Get, "/host", Access::Root, move |request, _| {
        request.only_query(&[])?;
        Response::ok(&s.host())
    });
    let s = Arc::clone(services);
    router.route(Method::Patch, "/host", Access::Root, move |request, _| {
        request.only_query(&[])?;
        let update: HostUpdate = request.json()?;
        Response::ok(&s.change_host(&update)?)
    });
    let s = Arc::clone(services);
    router.route(Method::Get, "/logs", Access::Root, move |request, _| {
        request.only_query(&["since", "max", "source"])?;
        let lines = s.logs(
            request.query_u64("since", 0)?,
            request.query_u64("max", DEFAULT_LINES)?,
            request.query.get("source").cloned(),
        )?;
        Response::ok(&lines)
    });
    let s = Arc::clone(services);
    router.route(Method::Post, "/agents/{name}/restart", Access::Root, move |request, params| {
        request.only_query(&[])?;
        Response::json(202, &s.restart_agent(params.get("name"), request.caller.who())?)
    });
    let s = Arc::clone(services);
    router.route(Method::Post, "/power", Access::Root, move |request, _| {
        request.only_query(&[])?;
        let power: HostPower = request.json()?;
        Response::json(202, &s.host_power(&power, request.caller.who())?)
    });
}
