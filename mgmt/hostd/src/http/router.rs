//! Which route answers a method and path, who may use it, and how large its body may be.

use std::collections::BTreeMap;
use std::fmt;

use keelson_api::{Fault, Problem};
use uuid::Uuid;

use super::{Method, Request, Result};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone, even before a password is set: identity and health.
    Public,
    /// Anyone, once a password is set.
    Anyone,
    /// root, by a token or by the local socket.
    Root,
    /// root on the local socket only.
    LocalOnly,
}

/// How large a request's body may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyClass {
    /// At most [`super::MAX_JSON`] (16 KiB where anyone may send it), and all of it within a minute.
    Small,
    /// Any size: the route decides. It may pause for half a minute at most.
    Upload,
}

/// The values of a pattern's `{names}`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(BTreeMap<&'static str, String>);

impl Params {
    /// A value; empty when the pattern has no such name.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// A value as an id. What is none names nothing, so it is [`Fault::NotFound`].
    pub fn uuid(&self, name: &str) -> std::result::Result<Uuid, Problem> {
        let text = self.get(name);
        Uuid::parse_str(text).map_err(|_| {
            Problem::new(Fault::NotFound, format!("`{text}` is no id of anything here"))
                .remedy("ids look like 67e55044-10b1-426f-9247-bb680e5fe0c8; list them first")
        })
    }
}

type Handler = Box<dyn Fn(&mut Request, &Params) -> Result + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Literal(&'static str),
    Name(&'static str),
    Rest(&'static str),
}

struct Route {
    method: Method,
    parts: Vec<Part>,
    access: Access,
    body: BodyClass,
    handler: Handler,
}

/// All routes. The first that fits answers, so literal patterns come before patterns with names where both would fit.
#[derive(Default)]
pub struct Router(Vec<Route>);

/// What a method and path lead to.
pub enum Resolved<'r> {
    /// A route.
    Route {
        /// Who may use it.
        access: Access,
        /// How large its body may be.
        body: BodyClass,
        /// Runs it.
        run: Box<dyn Fn(&mut Request) -> Result + 'r>,
    },
    /// The path exists with these methods only.
    OtherMethods(Vec<Method>),
    /// There is nothing of that path.
    Nothing,
}

impl fmt::Debug for Resolved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route { access, body, .. } => write!(f, "Route({access:?}, {body:?})"),
            Self::OtherMethods(methods) => write!(f, "OtherMethods({methods:?})"),
            Self::Nothing => f.write_str("Nothing"),
        }
    }
}

impl Router {
    /// Adds a route below the API's base. A pattern is such as `/vms/{id}/power`; a last part `{path*}` takes one or more
    /// segments, joined with `/`.
    pub fn route(
        &mut self,
        method: Method,
        pattern: &'static str,
        access: Access,
        handler: impl Fn(&mut Request, &Params) -> Result + Send + Sync + 'static,
    ) {
        self.add(method, pattern, access, BodyClass::Small, Box::new(handler));
    }

    /// The same for a body of any size, which the route reads from [`Request::body`].
    pub fn upload(
        &mut self,
        method: Method,
        pattern: &'static str,
        access: Access,
        handler: impl Fn(&mut Request, &Params) -> Result + Send + Sync + 'static,
    ) {
        self.add(method, pattern, access, BodyClass::Upload, Box::new(handler));
    }

    fn add(
        &mut self,
        method: Method,
        pattern: &'static str,
        access: Access,
        body: BodyClass,
        handler: Handler,
    ) {
        let part = |text: &'static str| match text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            None => Part::Literal(text),
            Some(name) => name.strip_suffix('*').map_or(Part::Name(name), Part::Rest),
        };
        let parts = pattern.trim_start_matches('/').split('/').map(part).collect();
        self.0.push(Route { method, parts, access, body, handler });
    }

    /// What answers a method and the segments below the API's base.
    pub fn resolve(&self, method: Method, segments: &[String]) -> Resolved<'_> {
        let mut others = Vec::new();
        for route in &self.0 {
            let Some(params) = fit(&route.parts, segments) else { continue };
            if route.method == method {
                let run = Box::new(move |request: &mut Request| (route.handler)(request, &params));
                return Resolved::Route { access: route.access, body: route.body, run };
            }
            if !others.contains(&route.method) {
                others.push(route.method);
            }
        }
        if others.is_empty() { Resolved::Nothing } else { Resolved::OtherMethods(others) }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Router({} routes)", self.0.len())
    }
}

fn fit(parts: &[Part], segments: &[String]) -> Option<Params> {
    let mut params = Params::default();
    for (at, part) in parts.iter().enumerate() {
        let segment = segments.get(at)?;
        match part {
            Part::Literal(text) if text == segment => {}
            Part::Name(name) if !segment.is_empty() => {
                params.0.insert(name, segment.clone());
            }
            Part::Rest(name) => {
                params.0.insert(name, segments.get(at..)?.join("/"));
                return Some(params);
            }
            Part::Literal(_) | Part::Name(_) => return None,
        }
    }
    (parts.len() == segments.len()).then_some(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(path: &str) -> Vec<String> {
        path.split('/').map(Into::into).collect()
    }

    #[test]
    fn a_path_finds_its_route_and_its_names() {
        let parts = |p: &'static str| {
            let mut router = Router::default();
            router.route(Method::Get, p, Access::Root, |_, _| Ok(super::super::Response::Empty(204)));
            router.0.remove(0).parts
        };
        let files = parts("/datastores/{name}/files/{path*}");
        let params = fit(&files, &segments("datastores/datastore1/files/a/b c")).unwrap();
        assert_eq!(
            (params.get("name"), params.get("path"), params.get("other")),
            ("datastore1", "a/b c", "")
        );
        assert_eq!(fit(&files, &segments("datastores/datastore1/files")), None);
        assert_eq!(fit(&parts("/vms/{id}"), &segments("vms/")), None);
        assert_eq!(fit(&parts("/vms"), &segments("vms/x")), None);
    }

    #[test]
    fn another_method_is_told_apart_from_nothing() {
        let mut router = Router::default();
        router.route(Method::Get, "/vms", Access::Root, |_, _| Ok(super::super::Response::Empty(204)));
        router.route(Method::Post, "/vms", Access::Root, |_, _| Ok(super::super::Response::Empty(204)));
        assert!(
            matches!(router.resolve(Method::Put, &segments("vms")), Resolved::OtherMethods(m) if m == [Method::Get, Method::Post])
        );
        assert!(matches!(router.resolve(Method::Put, &segments("nothing")), Resolved::Nothing));
        assert!(matches!(
            router.resolve(Method::Get, &segments("vms")),
            Resolved::Route { access: Access::Root, .. }
        ));
    }
}
