//! Who asks, and whether that is enough for what is asked: decided from the head alone, before anything else is read.

use std::net::IpAddr;
use std::time::Duration;

use keelson_api::{Fault, Problem};

use super::head::{Authorization, Framing, Head};
use super::limits::ANYONE_BODY;
use crate::account::{Bearer, SessionKey};
use crate::agent::Agent;
use crate::http::{Access, BodyClass, Caller, MAX_JSON, Method, Resolved, Router, below_base};

/// A request that may go on.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) caller: Caller,
    pub(crate) session: Option<SessionKey>,
    /// The most bytes that the body may have; `None` for any number.
    pub(crate) body_limit: Option<u64>,
}

/// A request that may not.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) problem: Problem,
    /// The methods that the path has, for 405.
    pub(crate) allow: Vec<Method>,
    /// How long the answer shall wait.
    pub(crate) delay: Duration,
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self { problem, allow: Vec::new(), delay: Duration::ZERO }
    }
}

/// Decides. `peer` is `None` for the local socket, whose callers are root.
pub(crate) fn admit(
    head: &Head,
    peer: Option<IpAddr>,
    agent: &Agent,
    router: &Router,
) -> Result<Admitted, Refused> {
    let resolved = below_base(&head.target.segments)
        .map_or(Resolved::Nothing, |segments| router.resolve(head.method, segments));
    let access = match &resolved {
        Resolved::Route { access, .. } => Some(*access),
        _ => None,
    };
    let (caller, session) = who(head, peer, agent, access)?;
    let (access, body) = match resolved {
        Resolved::Route { access, body, .. } => (access, body),
        Resolved::OtherMethods(allow) => {
            let names: Vec<&str> = allow.iter().map(|m| m.as_str()).collect();
            let problem = Problem::new(
                Fault::MethodNotAllowed,
                format!("{} cannot be done with {}", head.method, head.target.canonical()),
            );
            return Err(Refused {
                problem: problem.remedy(format!("possible are: {}", names.join(", "))),
                allow,
                delay: Duration::ZERO,
            });
        }
        Resolved::Nothing => {
            return Err(Problem::new(
                Fault::NotFound,
                format!("there is nothing at {}", head.target.canonical()),
            )
            .remedy("all paths begin with /api/v1/")
            .into());
        }
    };
    if access == Access::LocalOnly && !caller.is_local() {
        return Err(
            Problem::new(Fault::NoPermission, "this is served on the host's local socket only").into()
        );
    }
    let body_limit = match (body, access) {
        (BodyClass::Upload, _) => None,
        (BodyClass::Small, Access::Public | Access::Anyone) => Some(ANYONE_BODY),
        (BodyClass::Small, _) => Some(MAX_JSON),
    };
    match (head.body, body_limit) {
        (Framing::Length(length), Some(limit)) if length > limit => Err(too_large(limit).into()),
        _ => Ok(Admitted { caller, session, body_limit }),
    }
}

fn who(
    head: &Head,
    peer: Option<IpAddr>,
    agent: &Agent,
    access: Option<Access>,
) -> Result<(Caller, Option<SessionKey>), Refused> {
    if peer.is_none() {
        return Ok((Caller::Root { who: "root (local)".into(), local: true }, None));
    }
    if access == Some(Access::Public) {
        return Ok((Caller::Anonymous, None));
    }
    if !agent.account.password_set() {
        let problem = Problem::new(
            Fault::PasswordNotSet,
            "root has no password yet; until then the network is served identity and health only",
        );
        return Err(problem
            .remedy("set it at the host's console with F2, or give the host word root_hash at power-on")
            .into());
    }
    let root = |who: String| Caller::Root { who, local: false };
    match &head.authorization {
        Authorization::Bearer(token) => match agent.account.bearer(token) {
            Some(Bearer::Session(key)) => return Ok((root("root".into()), Some(key))),
            Some(Bearer::Issued(name)) => return Ok((root(format!("root (token {name})")), None)),
            None => {}
        },
        Authorization::Missing | Authorization::Other => {}
    }
    if access == Some(Access::Anyone) {
        return Ok((Caller::Anonymous, None));
    }
    // The same answer whether the path exists or not.
    Err(Refused { problem: crate::account::wrong(), allow: Vec::new(), delay: agent.account.refused(peer) })
}

/// A body that is too large.
pub(crate) fn too_large(limit: u64) -> Problem {
    Problem::new(
        Fault::RequestTooLarge,
        format!("the request's body is larger than the {limit} bytes that are taken here"),
    )
    .remedy("send less; files are uploaded with PUT /api/v1/datastores/{name}/files/{path}")
}
