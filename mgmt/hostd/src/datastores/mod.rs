//! Datastores: where VMs and their files are. One for now: `datastore1`, on the state partition or, without one, in RAM.

mod path;
mod store;
mod tree;
mod upload;

use std::sync::Arc;

use keelson_api::{Fault, Problem};

pub use path::{DatastorePath, PathError, check_name};
pub use store::{Datastore, IDENTITY, OpenError, Space, UNFINISHED_VM};
pub use tree::{Access, Directory, Kind, Meta, TEMPORARY};

/// The name of the local datastore.
pub const LOCAL: &str = "datastore1";

/// All datastores of this host.
#[derive(Debug, Default)]
pub struct Datastores {
    stores: Vec<Arc<Datastore>>,
}

impl Datastores {
    /// These.
    pub fn new(stores: Vec<Datastore>) -> Self {
        Self { stores: stores.into_iter().map(Arc::new).collect() }
    }

    /// All, in name order.
    pub fn all(&self) -> &[Arc<Datastore>] {
        &self.stores
    }

    /// The one of that name.
    pub fn get(&self, name: &str) -> Result<&Arc<Datastore>, Problem> {
        self.stores.iter().find(|s| s.name() == name).ok_or_else(|| {
            let names: Vec<&str> = self.stores.iter().map(|s| s.name()).collect();
            let remedy = if names.is_empty() {
                "this host has none: see its conditions".into()
            } else {
                format!("this host has: {}", names.join(", "))
            };
            Problem::new(Fault::NotFound, format!("there is no datastore `{name}`")).remedy(remedy)
        })
    }

    /// Reads a `[datastore] path` of a request's field and finds its datastore.
    pub fn resolve(&self, field: &str, text: &str) -> Result<(DatastorePath, &Arc<Datastore>), Problem> {
        let path = DatastorePath::parse(text).map_err(|e| e.problem().field(field))?;
        let store = self.get(path.datastore()).map_err(|e| e.field(field))?;
        Ok((path, store))
    }

    /// The datastore that a request means: the one it names, or the only one.
    pub fn choose(&self, field: &str, name: Option<&str>) -> Result<&Arc<Datastore>, Problem> {
        match (name, self.stores.as_slice()) {
            (Some(name), _) => self.get(name).map_err(|e| e.field(field)),
            (None, [only]) => Ok(only),
            (None, []) => {
                Err(Problem::new(Fault::NotSupported, "this host has no datastore that can be used")
                    .remedy("see the host's conditions"))
            }
            (None, _) => Err(crate::problems::argument(field, "there are several datastores", "name one")),
        }
    }
}
