//! Where hostd's files and sockets are.

use std::path::PathBuf;

use uuid::Uuid;

/// The roots that everything else hangs from; tests put them elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// hostd's own documents: `host.toml`, `accounts.toml`, `vms.toml`, `tls/`.
    pub state: PathBuf,
    /// The local datastore's directory.
    pub datastore: PathBuf,
    /// The directory of the control sockets.
    pub run: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state: "/state/hostd".into(),
            datastore: "/state/datastore".into(),
            run: "/run/keelson".into(),
        }
    }
}

impl Paths {
    /// The host's id and name.
    pub fn host_file(&self) -> PathBuf {
        self.state.join("host.toml")
    }

    /// The password's hash and the issued tokens.
    pub fn accounts_file(&self) -> PathBuf {
        self.state.join("accounts.toml")
    }

    /// The directories of the registered VMs.
    pub fn vms_file(&self) -> PathBuf {
        self.state.join("vms.toml")
    }

    /// The certificate and its key.
    pub fn tls_dir(&self) -> PathBuf {
        self.state.join("tls")
    }

    /// init's control socket.
    pub fn init_socket(&self) -> PathBuf {
        self.run.join("init.sock")
    }

    /// netd's control socket.
    pub fn netd_socket(&self) -> PathBuf {
        self.run.join("netd.sock")
    }

    /// The local socket of the HTTP API.
    pub fn local_socket(&self) -> PathBuf {
        self.run.join("hostd.sock")
    }

    /// A VM's control socket.
    pub fn vm_control(&self, id: Uuid) -> PathBuf {
        self.run.join("vm").join(id.to_string()).join("control.sock")
    }

    /// A VM's console socket.
    pub fn vm_console(&self, id: Uuid) -> PathBuf {
        self.run.join("vm").join(id.to_string()).join("console.sock")
    }
}
