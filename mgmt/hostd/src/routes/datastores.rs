//! Routes of the datastores and their files.

use std::sync::{Arc, MutexGuard};

use keelson_api::{Datastore, Fault, Problem};

use crate::datastores::DatastorePath;
use crate::http::{Access, Method, Params, Response, Router};
use crate::services::Services;

pub(super) fn install(router: &mut Router, services: &Arc<Services>) {
    let s = Arc::clone(services);
    router.route(Method::Get, "/datastores", Access::Root, move |request, _| {
        request.only_query(&[])?;
        let list: Vec<Datastore> = s.datastores.all().iter().map(|d| d.shown()).collect();
        Response::ok(&list)
    });
    let s = Arc::clone(services);
    router.route(Method::Get, "/datastores/{name}", Access::Root, move |request, params| {
        request.only_query(&[])?;
        Response::ok(&s.datastores.get(params.get("name"))?.shown())
    });
    let s = Arc::clone(services);
    router.route(Method::Get, "/datastores/{name}/files", Access::Root, move |request, params| {
        request.only_query(&["path"])?;
        let store = s.datastores.get(params.get("name"))?;
        let path = request.query.get("path").map_or("", String::as_str);
        let path = DatastorePath::on(store.name(), path).map_err(|e| e.problem().field("path"))?;
        Response::ok(&store.list(&path)?)
    });
    let s = Arc::clone(services);
    router.route(Method::Get, "/datastores/{name}/files/{path*}", Access::Root, move |request, params| {
        request.only_query(&[])?;
        let path = file(params)?;
        let (reader, length) = s.datastores.get(path.datastore())?.download(&path)?;
        // A file that grows meanwhile is sent as long as it was; one that shrinks breaks the transfer off, and the client notices.
        let reader = Box::new(std::io::Read::take(reader, length));
        Ok(Response::Bytes {
            status: 200,
            content_type: "application/octet-stream",
            reader,
            length: Some(length),
        })
    });
    let s = Arc::clone(services);
    router.upload(Method::Put, "/datastores/{name}/files/{path*}", Access::Root, move |request, params| {
        request.only_query(&[])?;
        let path = file(params)?;
        let store = s.datastores.get(path.datastore())?;
        let may_replace = || s.may_touch(&path, "replaced");
        let length = request.content_length;
        let entry = store.upload(&path, &mut request.body, length, &may_replace)?;
        log::info!("`{path}` of {} bytes was stored by {}", entry.size_bytes, request.caller.who());
        Response::json(201, &entry)
    });
    let s = Arc::clone(services);
    router.route(Method::Delete, "/datastores/{name}/files/{path*}", Access::Root, move |request, params| {
        request.only_query(&[])?;
        let path = file(params)?;
        let store = s.datastores.get(path.datastore())?;
        let still = s.may_touch(&path, "deleted")?;
        store.delete(&path)?;
        drop(still);
        log::info!("`{path}` was deleted by {}", request.caller.who());
        Ok(Response::Empty(204))
    });
}

fn file(params: &Params) -> Result<DatastorePath, Problem> {
    let path = DatastorePath::on(params.get("name"), params.get("path")).map_err(|e| e.problem())?;
    if path.parts().is_empty() {
        return Err(
            Problem::new(Fault::InvalidDatastorePath, "no file is named").remedy("name one after `files/`")
        );
    }
    Ok(path)
}

impl Services {
    /// Whether a file may be replaced or deleted: not while a powered-on VM uses it, and never when it is a VM's description or record.
    /// It stays so while what is returned is kept: no power-on of a VM begins meanwhile.
    fn may_touch(&self, path: &DatastorePath, to: &str) -> Result<MutexGuard<'_, ()>, Problem> {
        let still = self.vms.no_power_on();
        if let Some(vm) = self.vms.owner_of(path) {
            let problem =
                Problem::new(Fault::FileInUse, format!("`{path}` is the VM {vm}'s own and cannot be {to}"));
            return Err(problem.remedy("change or delete the VM instead"));
        }
        if let Some(vm) = self.vms.user_of(path) {
            let problem = Problem::new(
                Fault::FileInUse,
                format!("`{path}` is used by the VM {vm}, which is powered on, and cannot be {to}"),
            );
            return Err(problem.remedy("power the VM off first, or use another name"));
        }
        Ok(still)
    }
}
