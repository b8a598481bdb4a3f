//! Carries out what the console asks of hostd, one thing after the other, so that the screen never waits.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use keelson_api::client::{Client, ClientError, LogQuery};
use keelson_api::{Fault, HostPower, Login, PasswordChange, ROOT, TaskState};
use keelson_init_control::logging::chain;

use crate::Message;
use crate::jobs::{Done, Failure, Job};
use crate::watch::Bell;

/// How long hostd may take to answer; wrong passwords slow it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long guests may take after their power button when the host goes down, in seconds.
const GUEST_DEADLINE_S: u32 = 60;

/// Starts the worker. `bell` is rung when something may have changed.
pub(crate) fn start(hostd: &Path, to: Sender<Message>, bell: Bell) -> std::io::Result<Sender<(u64, Job)>> {
    let client = Client::local_at(hostd).with_patience(PATIENCE);
    let (jobs, work): (_, Receiver<(u64, Job)>) = channel();
    thread::Builder::new().name("worker".into()).spawn(move || {
        for (number, job) in work {
            let result = carry_out(&client, job).map_err(|e| match e.fault() {
                Some(Fault::NotAuthenticated) => Failure::WrongPassword,
                _ => Failure::Other(format!("{}.", chain(&e).trim_end_matches('.'))),
            });
            bell.ring();
            if to.send(Message::Done(number, result)).is_err() {
                return;
            }
        }
    })?;
    Ok(jobs)
}

fn carry_out(client: &Client, job: Job) -> Result<Done, ClientError> {
    match job {
        Job::Verify(password) => client.verify(&Login { username: ROOT.into(), password })?,
        Job::SetPassword { current, new } => client.change_password(&PasswordChange { current, new })?,
        Job::Apply(updates) => {
            if let Some(host) = &updates.host {
                client.update_host(host)?;
            }
            client.update_adapter(&updates.adapter, &updates.network)?;
            restart_network(client)?;
        }
        Job::RestartNetwork => restart_network(client)?,
        Job::Power(action) => {
            client.host_power(&HostPower { action, guest_deadline_s: GUEST_DEADLINE_S })?;
        }
        Job::Logs(since) => {
            return client.logs(&LogQuery { since, max: Some(1000), source: None }).map(Done::Lines);
        }
    }
    Ok(Done::Ok)
}

fn restart_network(client: &Client) -> Result<(), ClientError> {
    let task = client.restart_network()?;
    let task = client.task_end(task, |_| ())?;
    match (task.state, task.error) {
        (TaskState::Error, Some(problem)) => Err(ClientError::Problem(Box::new(problem))),
        (TaskState::Error, None) => Err(ClientError::NotKeelson {
            host: client.host(),
            why: format!("the task failed without a reason: {}", task.message),
        }),
        _ => Ok(()),
    }
}
