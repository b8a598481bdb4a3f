//! The routes of the account, of identity and of health.

use std::sync::Arc;

use keelson_api::{Fault, Health, Login, NewToken, PasswordChange, Problem};

use crate::agent::Agent;
use crate::http::{Access, Method, Request, Response, Result, Router};

/// Adds them.
pub(crate) fn install(router: &mut Router, agent: &Arc<Agent>) {
    router
        .route(Method::Get, "/healthz", Access::Public, |_, _| Response::ok(&Health { status: "ok".into() }));
    let a = agent.clone();
    router.route(Method::Get, "/identity", Access::Public, move |_, _| Response::ok(&a.identity()));
    let a = agent.clone();
    router.route(Method::Post, "/sessions", Access::Anyone, move |request, _| {
        let login: Login = request.json()?;
        check(&a, &login.username, &login.password, request)?;
        Response::json(201, &a.account.open_session()?)
    });
    let a = agent.clone();
    router.route(Method::Delete, "/sessions/current", Access::Root, move |request, _| {
        match request.session {
            Some(key) => {
                a.account.end_session(key);
                Ok(Response::Empty(204))
            }
            None => Err(Problem::new(Fault::NotFound, "this request uses no session")
                .remedy("issued tokens end with DELETE /api/v1/tokens/{id}")),
        }
    });
    let a = agent.clone();
    router.route(Method::Get, "/tokens", Access::Root, move |_, _| Response::ok(&a.account.tokens()));
    let a = agent.clone();
    router.route(Method::Post, "/tokens", Access::Root, move |request, _| {
        let new: NewToken = request.json()?;
        Response::json(201, &a.account.issue(&new)?)
    });
    let a = agent.clone();
    router.route(Method::Delete, "/tokens/{id}", Access::Root, move |_, params| {
        match a.account.revoke(params.uuid("id")?)? {
            true => Ok(Response::Empty(204)),
            false => Err(Problem::new(Fault::NotFound, format!("there is no token {}", params.get("id")))
                .remedy("GET /api/v1/tokens lists them")),
        }
    });
    let a = agent.clone();
    router.route(Method::Put, "/account/password", Access::Root, move |request, _| {
        change_password(&a, request)
    });
    let a = agent.clone();
    router.route(Method::Post, "/account/verify", Access::LocalOnly, move |request, _| {
        let login: Login = request.json()?;
        check(&a, &login.username, &login.password, request)?;
        Ok(Response::Empty(204))
    });
}

fn check(
    agent: &Agent,
    username: &str,
    password: &str,
    request: &Request,
) -> std::result::Result<(), Problem> {
    let gone = request.gone();
    agent.account.verify(username, password, request.peer, |time| gone.wait(time))
}

fn change_password(agent: &Agent, request: &mut Request) -> Result {
    let change: PasswordChange = request.json()?;
    if agent.account.password_set() {
        let Some(current) = &change.current else {
            return Err(Problem::new(Fault::InvalidArgument, "the present password is needed")
                .field("current")
                .remedy("send it as `current`"));
        };
        // A wrong one is a fault of the request, not of its credentials: those were right.
        check(agent, keelson_api::ROOT, current, request).map_err(|problem| match problem.fault {
            Fault::NotAuthenticated => Problem::new(Fault::InvalidArgument, "the present password is wrong")
                .field("current")
                .remedy("type it again"),
            _ => problem,
        })?;
    }
    agent.account.set_password(&change.new, request.session)?;
    Ok(Response::Empty(204))
}
