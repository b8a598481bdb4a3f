//! One method for each line of the API's table.

use std::time::Duration;

use ureq::http::Method;
use uuid::Uuid;

use super::{Client, ClientError, Payload};
use crate::{
    AdapterUpdate, Datastore, FileEntry, Health, Host, HostPower, HostUpdate, Identity, IssuedToken, LogLine,
    Login, Network, NetworkUpdate, NewToken, PasswordChange, Session, Task, Token, Vm, VmEpoch, VmPower,
    VmPowerAction, VmSpec, VmUpdate,
};

/// The longest that one request waits for a task; [`Client::task_end`] repeats it.
const TASK_WAIT_S: u64 = 25;

/// Which log lines.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// The first number wanted; 0 for all that are left.
    pub since: u64,
    /// How many at most; the host decides when `None`.
    pub max: Option<u32>,
    /// Only of this source.
    pub source: Option<String>,
}

impl Client {
    /// Whether the host agent works.
    pub fn health(&self) -> Result<Health, ClientError> {
        self.call(Method::GET, "/healthz", Payload::Nothing)
    }

    /// Which host this is.
    pub fn identity(&self) -> Result<Identity, ClientError> {
        self.call(Method::GET, "/identity", Payload::Nothing)
    }

    /// Logs in.
    pub fn login(&self, login: &Login) -> Result<Session, ClientError> {
        self.call(Method::POST, "/sessions", Payload::json(login))
    }

    /// Ends the session whose token this client carries.
    pub fn logout(&self) -> Result<(), ClientError> {
        self.tell(Method::DELETE, "/sessions/current", Payload::Nothing)
    }

    /// The issued tokens.
    pub fn tokens(&self) -> Result<Vec<Token>, ClientError> {
        self.call(Method::GET, "/tokens", Payload::Nothing)
    }

    /// Issues a token.
    pub fn create_token(&self, token: &NewToken) -> Result<IssuedToken, ClientError> {
        self.call(Method::POST, "/tokens", Payload::json(token))
    }

    /// Ends a token.
    pub fn delete_token(&self, id: Uuid) -> Result<(), ClientError> {
        self.tell(Method::DELETE, &format!("/tokens/{id}"), Payload::Nothing)
    }

    /// Changes root's password.
    pub fn change_password(&self, change: &PasswordChange) -> Result<(), ClientError> {
        self.tell(Method::PUT, "/account/password", Payload::json(change))
    }

    /// Whether these credentials are right; on the local socket only. Wrong ones are the fault `NotAuthenticated`.
    pub fn verify(&self, login: &Login) -> Result<(), ClientError> {
        self.tell(Method::POST, "/account/verify", Payload::json(login))
    }

    /// The host.
    pub fn get_host(&self) -> Result<Host, ClientError> {
        self.call(Method::GET, "/host", Payload::Nothing)
    }

    /// Changes the host.
    pub fn update_host(&self, update: &HostUpdate) -> Result<Host, ClientError> {
        self.call(Method::PATCH, "/host", Payload::json(update))
    }

    /// The host's network.
    pub fn network(&self) -> Result<Network, ClientError> {
        self.call(Method::GET, "/network", Payload::Nothing)
    }

    /// Changes the host's network.
    pub fn update_network(&self, update: &NetworkUpdate) -> Result<Network, ClientError> {
        self.call(Method::PATCH, "/network", Payload::json(update))
    }

    /// Changes a VMkernel adapter.
    pub fn update_adapter(&self, name: &str, update: &AdapterUpdate) -> Result<Network, ClientError> {
        self.call(
            Method::PATCH,
            &format!("/network/vmkernel-adapters/{}", segment(name)),
            Payload::json(update),
        )
    }

    /// Restarts the management network.
    pub fn restart_network(&self) -> Result<Task, ClientError> {
        self.call(Method::POST, "/network/restart", Payload::Nothing)
    }

    /// All datastores.
    pub fn datastores(&self) -> Result<Vec<Datastore>, ClientError> {
        self.call(Method::GET, "/datastores", Payload::Nothing)
    }

    /// One datastore.
    pub fn datastore(&self, name: &str) -> Result<Datastore, ClientError> {
        self.call(Method::GET, &format!("/datastores/{}", segment(name)), Payload::Nothing)
    }

    /// The files in a directory of a datastore; `""` is its root.
    pub fn files(&self, datastore: &str, dir: &str) -> Result<Vec<FileEntry>, ClientError> {
        self.call(
            Method::GET,
            &format!("/datastores/{}/files?path={}", segment(datastore), segment(dir)),
            Payload::Nothing,
        )
    }

    /// Deletes a file.
    pub fn delete_file(&self, datastore: &str, path: &str) -> Result<(), ClientError> {
        self.tell(Method::DELETE, &file_path(datastore, path), Payload::Nothing)
    }

    /// All VMs.
    pub fn vms(&self) -> Result<Vec<Vm>, ClientError> {
        self.call(Method::GET, "/vms", Payload::Nothing)
    }

    /// Creates a VM.
    pub fn create_vm(&self, spec: &VmSpec) -> Result<Vm, ClientError> {
        self.call(Method::POST, "/vms", Payload::json(spec))
    }

    /// One VM.
    pub fn vm(&self, id: Uuid) -> Result<Vm, ClientError> {
        self.call(Method::GET, &format!("/vms/{id}"), Payload::Nothing)
    }

    /// Changes a VM.
    pub fn update_vm(&self, id: Uuid, update: &VmUpdate) -> Result<Vm, ClientError> {
        self.call(Method::PATCH, &format!("/vms/{id}"), Payload::json(update))
    }

    /// Deletes a VM with its directory.
    pub fn delete_vm(&self, id: Uuid) -> Result<Task, ClientError> {
        self.call(Method::DELETE, &format!("/vms/{id}"), Payload::Nothing)
    }

    /// Changes a VM's power state.
    pub fn vm_power(&self, id: Uuid, action: VmPowerAction) -> Result<Task, ClientError> {
        self.call(Method::POST, &format!("/vms/{id}/power"), Payload::json(&VmPower { action, force: false }))
    }

    /// Powers a VM on although another host owns it: the caller states that that host is off.
    pub fn vm_power_on_forced(&self, id: Uuid) -> Result<Task, ClientError> {
        let power = VmPower { action: VmPowerAction::On, force: true };
        self.call(Method::POST, &format!("/vms/{id}/power"), Payload::json(&power))
    }

    /// A VM's owners, the latest first, at most 1000.
    pub fn vm_history(&self, id: Uuid) -> Result<Vec<VmEpoch>, ClientError> {
        self.call(Method::GET, &format!("/vms/{id}/history?max=1000"), Payload::Nothing)
    }

    /// Types bytes into a VM's serial port.
    pub fn console_input(&self, id: Uuid, bytes: &[u8]) -> Result<(), ClientError> {
        let payload = Payload::Bytes("application/octet-stream", bytes.to_vec());
        self.tell(Method::POST, &format!("/vms/{id}/console/input"), payload)
    }

    /// Recent tasks.
    pub fn tasks(&self) -> Result<Vec<Task>, ClientError> {
        self.call(Method::GET, "/tasks", Payload::Nothing)
    }

    /// One task, as it stands.
    pub fn task(&self, id: Uuid) -> Result<Task, ClientError> {
        self.call(Method::GET, &format!("/tasks/{id}"), Payload::Nothing)
    }

    /// One task, when it has ended or `wait` (whole seconds, at most 60) has passed.
    pub fn task_within(&self, id: Uuid, wait: Duration) -> Result<Task, ClientError> {
        let seconds = wait.as_secs().min(60);
        self.call_waiting(
            Method::GET,
            &format!("/tasks/{id}?wait={seconds}"),
            Payload::Nothing,
            Duration::from_secs(seconds),
        )
    }

    /// Waits until a task has ended, and tells how it stands from time to time. A task that failed is an `Ok` whose state says so.
    pub fn task_end(&self, task: Task, mut progress: impl FnMut(&Task)) -> Result<Task, ClientError> {
        let mut task = task;
        while !task.state.ended() {
            progress(&task);
            task = self.task_within(task.id, Duration::from_secs(TASK_WAIT_S))?;
        }
        progress(&task);
        Ok(task)
    }

    /// Asks a task to stop.
    pub fn cancel_task(&self, id: Uuid) -> Result<Task, ClientError> {
        self.call(Method::POST, &format!("/tasks/{id}/cancel"), Payload::Nothing)
    }

    /// Lines of the host's log.
    pub fn logs(&self, query: &LogQuery) -> Result<Vec<LogLine>, ClientError> {
        let mut path = format!("/logs?since={}", query.since);
        if let Some(max) = query.max {
            path.push_str(&format!("&max={max}"));
        }
        if let Some(source) = &query.source {
            path.push_str(&format!("&source={}", segment(source)));
        }
        self.call(Method::GET, &path, Payload::Nothing)
    }

    /// Restarts one of the host's daemons: `hostd`, `netd` or `dcui`. VMs go on.
    pub fn restart_agent(&self, name: &str) -> Result<Task, ClientError> {
        self.call(Method::POST, &format!("/agents/{}/restart", segment(name)), Payload::Nothing)
    }

    /// Shuts down or restarts the host.
    pub fn host_power(&self, power: &HostPower) -> Result<Task, ClientError> {
        self.call(Method::POST, "/power", Payload::json(power))
    }
}

/// A text as one segment of a path or as a value of a query (RFC 3986: what is not unreserved is percent-encoded).
pub(super) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The API's path of a file.
pub(super) fn file_path(datastore: &str, path: &str) -> String {
    let encoded: Vec<String> = path.split('/').map(segment).collect();
    format!("/datastores/{}/files/{}", segment(datastore), encoded.join("/"))
}
