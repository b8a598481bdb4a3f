//! Routes of the tasks.

use std::sync::Arc;
use std::time::Duration;

use crate::http::{Access, Method, Response, Router};
use crate::problems::argument;
use crate::services::Services;

/// The longest that a request waits for a task, in seconds.
const MAX_WAIT_S: u64 = 60;

pub(super) fn install(router: &mut Router, services: &Arc<Services>) {
    let s = Arc::clone(services);
    router.route(Method::Get, "/tasks", Access::Root, move |request, _| {
        request.only_query(&[])?;
        Response::ok(&s.tasks.list())
    });
    let s = Arc::clone(services);
    router.route(Method::Get, "/tasks/{id}", Access::Root, move |request, params| {
        request.only_query(&["wait"])?;
        let wait = request.query_u64("wait", 0)?;
        if wait > MAX_WAIT_S {
            return Err(argument(
                "wait",
                format!("a request cannot wait {wait} s"),
                &format!("give 0 to {MAX_WAIT_S}, and ask again"),
            ));
        }
        Response::ok(&s.tasks.get(params.uuid("id")?, Duration::from_secs(wait))?)
    });
    let s = Arc::clone(services);
    router.route(Method::Post, "/tasks/{id}/cancel", Access::Root, move |request, params| {
        request.only_query(&[])?;
        Response::ok(&s.tasks.cancel(params.uuid("id")?)?)
    });
}
