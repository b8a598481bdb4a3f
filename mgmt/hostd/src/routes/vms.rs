//! Routes of the VMs and their consoles.

use std::io::Read;
use std::sync::Arc;

use keelson_api::{Fault, Problem, VmPower, VmSpec, VmUpdate};

use crate::http::{Access, Method, Response, Router};
use crate::problems::argument;
use crate::services::Services;
use crate::vms::MAX_INPUT;

/// The most epochs of a VM that are shown at once.
const MAX_HISTORY: u64 = 1000;

pub(super) fn install(router: &mut Router, services: &Arc<Services>) {
    let s = Arc::clone(services);
    router.route(Method::Get, "/vms", Access::Root, move |request, _| {
        request.only_query(&[])?;
        Response::ok(&s.vms.list())
    });
    let s = Arc::clone(services);
    router.route(Method::Post, "/vms", Access::Root, move |request, _| {
        request.only_query(&[])?;
        let spec: VmSpec = request.json()?;
        Response::json(201, &s.vms.create(&spec)?)
    });
    let s = Arc::clone(services);
    router.route(Method::Get, "/vms/{id}", Access::Root, move |request, params| {
        request.only_query(&[])?;
        Response::ok(&s.vms.get(params.uuid("id")?)?)
    });
    let s = Arc::clone(services);
    router.route(Method::Patch, "/vms/{id}", Access::Root, move |request, params| {
        request.only_query(&[])?;
        let id = params.uuid("id")?;
        let update: VmUpdate = request.json()?;
        Response::ok(&s.vms.change(id, &update)?)
    });
    let s = Arc::clone(services);
    router.route(Method::Delete, "/vms/{id}", Access::Root, move |request, params| {
        request.only_query(&[])?;
        Response::json(202, &s.vms.delete(params.uuid("id")?, request.caller.who())?)
    });
    let s = Arc::clone(services);
    router.route(Method::Post, "/vms/{id}/power", Access::Root, move |request, params| {
        request.only_query(&[])?;
        let id = params.uuid("id")?;
        let power: VmPower = request.json()?;
        Response::json(202, &s.vms.power(id, power, request.caller.who())?)
    });
    let s = Arc::clone(services);
    router.route(Method::Get, "/vms/{id}/history", Access::Root, move |request, params| {
        request.only_query(&["max"])?;
        let max = request.query_u64("max", 100)?;
        if !(1..=MAX_HISTORY).contains(&max) {
            return Err(argument(
                "max",
                format!("{max} epochs cannot be asked for"),
                &format!("give 1 to {MAX_HISTORY}"),
            ));
        }
        Response::ok(&s.vms.history(params.uuid("id")?, usize::try_from(max).unwrap_or(usize::MAX))?)
    });
    install_console(router, services);
}

fn install_console(router: &mut Router, services: &Arc<Services>) {
    let s = Arc::clone(services);
    router.route(Method::Get, "/vms/{id}/console/log", Access::Root, move |request, params| {
        request.only_query(&[])?;
        let (reader, length) = s.vms.console_log(params.uuid("id")?)?;
        Ok(Response::Bytes {
            status: 200,
            content_type: "text/plain; charset=utf-8",
            reader,
            length: Some(length),
        })
    });
    let s = Arc::clone(services);
    router.route(Method::Get, "/vms/{id}/console/stream", Access::Root, move |request, params| {
        request.only_query(&[])?;
        s.vms.console_stream(params.uuid("id")?, &request.gone())
    });
    let s = Arc::clone(services);
    router.route(Method::Post, "/vms/{id}/console/input", Access::Root, move |request, params| {
        request.only_query(&[])?;
        let id = params.uuid("id")?;
        let mut input = Vec::new();
        let read = (&mut request.body).take(MAX_INPUT as u64 + 1).read_to_end(&mut input);
        read.map_err(|e| {
            Problem::new(Fault::MalformedRequest, format!("the request's body did not arrive whole: {e}"))
                .remedy("nothing was typed; send it again")
        })?;
        s.vms.console_input(id, &input)?;
        Ok(Response::Empty(204))
    });
}
