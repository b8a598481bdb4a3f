//! The routes of the services: each reads its request, asks the service and shows the answer.

mod datastores;
mod host;
mod network;
mod tasks;
mod vms;

use std::sync::Arc;

use crate::http::Router;
use crate::services::Services;

/// Adds all routes of the services.
pub fn install(router: &mut Router, services: &Arc<Services>) {
    host::install(router, services);
    network::install(router, services);
    datastores::install(router, services);
    vms::install(router, services);
    tasks::install(router, services);
}
