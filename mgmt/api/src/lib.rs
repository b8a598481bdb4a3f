//! The vocabulary of Keelson's HTTP API, version 1: every request, reply and fault as a type. No I/O, but for the feature
//! `client`.
//!
//! All paths are below [`BASE`]. Bodies are JSON, but for files and consoles. A request body with an unknown field is refused.
//!
//! | method and path | body → reply | who |
//! | --- | --- | --- |
//! | `GET /healthz` (also without [`BASE`]) | → [`Health`] | anyone |
//! | `GET /identity` | → [`Identity`] | anyone |
//! | `POST /sessions` | [`Login`] → 201 [`Session`] | anyone; slowed after failures |
//! | `DELETE /sessions/current` | → 204 | root |
//! | `GET /tokens`, `POST /tokens`, `DELETE /tokens/{id}` | [`NewToken`] → 201 [`IssuedToken`]; list of [`Token`] | root |
//! | `PUT /account/password` | [`PasswordChange`] → 204 | root; on the local socket also before a password is set |
//! | `POST /account/verify` | [`Login`] → 204, or 401 | the local socket only (the console asks for the password with it) |
//! | `GET /host`, `PATCH /host` | [`HostUpdate`] → [`Host`] | root |
//! | `GET /network`, `PATCH /network` | [`NetworkUpdate`] → [`Network`] | root |
//! | `PATCH /network/vmkernel-adapters/{name}` | [`AdapterUpdate`] → [`Network`] | root |
//! | `POST /network/restart` | → 202 [`Task`] | root |
//! | `GET /datastores`, `GET /datastores/{name}` | → [`Datastore`] | root |
//! | `GET /datastores/{name}/files?path=DIR` | → list of [`FileEntry`] | root |
//! | `GET`, `PUT`, `DELETE /datastores/{name}/files/{path}` | bytes; `PUT` → 201 [`FileEntry`] | root |
//! | `GET /vms`, `POST /vms` | [`VmSpec`] → 201 [`Vm`] | root |
//! | `GET`, `PATCH`, `DELETE /vms/{id}` | [`VmUpdate`] → [`Vm`]; `DELETE` → 202 [`Task`] | root |
//! | `POST /vms/{id}/power` | [`VmPower`] → 202 [`Task`] | root |
//! | `GET /vms/{id}/history?max=M` | → list of [`VmEpoch`], the latest first | root |
//! | `GET /vms/{id}/console/log` | → text/plain: what the serial port printed lately | root |
//! | `GET /vms/{id}/console/stream` | → application/octet-stream that goes on until the VM is off | root |
//! | `POST /vms/{id}/console/input` | bytes, typed into the serial port → 204 | root |
//! | `GET /tasks`, `GET /tasks/{id}`, `POST /tasks/{id}/cancel` | → [`Task`] | root |
//! | `GET /logs?since=N&max=M&source=S` | → list of [`LogLine`] | root |
//! | `POST /agents/{name}/restart` | → 202 [`Task`]; `hostd`, `netd` or `dcui`; VMs go on | root |
//! | `POST /power` | [`HostPower`] → 202 [`Task`] | root |
//!
//! `GET /tasks/{id}?wait=SECONDS` (0 to 60) answers when the task has ended or the time has passed.
//! Whoever reaches the local socket `/run/keelson/hostd.sock` as root is root. Over HTTPS a request carries
//! `Authorization: Bearer TOKEN`, TOKEN being a session's or an issued one.

mod account;
#[cfg(feature = "client")]
pub mod client;
mod cpu;
mod datastore;
mod fault;
mod host;
mod network;
mod task;
mod vm;

pub use account::{IssuedToken, Login, NewToken, PasswordChange, Session, Token};
pub use cpu::{CpuIdentity, VmCpu};
pub use datastore::{Datastore, FileEntry, FileKind};
pub use fault::{Fault, Problem};
pub use host::{
    Condition, Cpu, Health, Host, HostPower, HostPowerAction, HostUpdate, Identity, KvmStatus, LogLine,
    Memory, Step,
};
pub use network::{
    AdapterUpdate, Address, Dns, Ipv4Setting, Network, NetworkUpdate, Nic, Origin, PortGroup, Service,
    VSwitch, VmkAdapter,
};
pub use task::{Task, TaskState};
pub use uuid::Uuid;
pub use vm::{
    DiskSpec, EpochCause, NicSpec, OwnerState, PowerState, Vm, VmDisk, VmEpoch, VmNic, VmPower,
    VmPowerAction, VmSpec, VmUpdate,
};

/// The prefix of all paths.
pub const BASE: &str = "/api/v1";
/// The local socket of the host agent.
pub const LOCAL_SOCKET: &str = "/run/keelson/hostd.sock";
/// The one account.
pub const ROOT: &str = "root";
/// The shortest password, in characters.
pub const MIN_PASSWORD: usize = 8;
/// The longest password, in bytes.
pub const MAX_PASSWORD: usize = 1024;
