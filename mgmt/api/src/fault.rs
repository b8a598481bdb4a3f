//! Faults, and how they are written: problem+json (RFC 9457).

use serde::{Deserialize, Serialize};

/// A kind of fault. The name is stable and, where vSphere has one, vSphere's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fault {
    /// The request is not HTTP as RFC 9112 writes it, or is over a limit.
    MalformedRequest,
    /// A field is missing, unknown or has a value that it cannot have.
    InvalidArgument,
    /// A path is not on the datastore, or is no path.
    InvalidDatastorePath,
    /// No credentials, or wrong ones.
    NotAuthenticated,
    /// No password is set yet: only identity and health are served.
    PasswordNotSet,
    /// This caller may not do that.
    NoPermission,
    /// There is no such thing.
    NotFound,
    /// The path exists, but not with that method.
    MethodNotAllowed,
    /// The name is taken.
    DuplicateName,
    /// A file of that name is there, or is in use.
    FileInUse,
    /// The VM's power state does not allow it.
    InvalidPowerState,
    /// Another host owns the VM.
    OwnedByAnotherHost,
    /// The record of a VM's latest owner cannot be used, so nobody knows whether it runs.
    OwnerRecordDamaged,
    /// Whose the VM is, is open: its datastore has not answered yet.
    OwnershipOpen,
    /// Another task works on it.
    TaskInProgress,
    /// It changed meanwhile.
    ConcurrentAccess,
    /// The body or a head is too large.
    RequestTooLarge,
    /// Too many attempts or connections.
    TooManyRequests,
    /// The host has not enough memory or CPU.
    InsufficientResourcesFault,
    /// The datastore is full.
    NoDiskSpace,
    /// The host cannot do that: no KVM, a kernel without a feature.
    NotSupported,
    /// The host is shutting down, or a part of it is not there at the moment.
    HostNotReachable,
    /// It was tried and failed.
    SystemError,
}

impl Fault {
    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Self::MalformedRequest | Self::InvalidArgument | Self::InvalidDatastorePath => 400,
            Self::NotAuthenticated => 401,
            Self::PasswordNotSet | Self::NoPermission => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::DuplicateName | Self::FileInUse | Self::InvalidPowerState | Self::TaskInProgress => 409,
            Self::OwnedByAnotherHost | Self::OwnerRecordDamaged => 409,
            Self::ConcurrentAccess => 412,
            Self::RequestTooLarge => 413,
            Self::InsufficientResourcesFault | Self::NotSupported => 422,
            Self::TooManyRequests => 429,
            Self::SystemError => 500,
            Self::HostNotReachable | Self::OwnershipOpen => 503,
            Self::NoDiskSpace => 507,
        }
    }

    /// What it means, in a few words.
    pub fn title(self) -> &'static str {
        match self {
            Self::MalformedRequest => "The request is malformed",
            Self::InvalidArgument => "A value is not possible",
            Self::InvalidDatastorePath => "The path is not on the datastore",
            Self::NotAuthenticated => "Not logged in",
            Self::PasswordNotSet => "No password is set yet",
            Self::NoPermission => "Not permitted",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "This cannot be done here",
            Self::DuplicateName => "The name is taken",
            Self::FileInUse => "The file is in use",
            Self::InvalidPowerState => "The power state does not allow it",
            Self::OwnedByAnotherHost => "Another host owns the VM",
            Self::OwnerRecordDamaged => "The record of the VM's owner is damaged",
            Self::OwnershipOpen => "Whose the VM is, is open",
            Self::TaskInProgress => "Another task is at work on it",
            Self::ConcurrentAccess => "It was changed meanwhile",
            Self::RequestTooLarge => "The request is too large",
            Self::TooManyRequests => "Too many requests",
            Self::InsufficientResourcesFault => "Not enough resources",
            Self::NoDiskSpace => "The datastore is full",
            Self::NotSupported => "The host cannot do that",
            Self::HostNotReachable => "A part of the host is not there at the moment",
            Self::SystemError => "It failed",
        }
    }
}

/// A fault as it is sent: `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:keelson:fault:NAME`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The fault's meaning in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What failed, on what, and why.
    pub detail: String,
    /// The fault's name.
    pub fault: Fault,
    /// The field of the request that is wrong, as a path such as `disks[0].size_mib`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Problem {
    /// A fault with its detail.
    pub fn new(fault: Fault, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:keelson:fault:{fault:?}"),
            title: fault.title().into(),
            status: fault.status(),
            detail: detail.into(),
            fault,
            field: None,
            remedy: None,
        }
    }

    /// Names the field that is wrong.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.detail)?;
        match &self.remedy {
            Some(remedy) => write!(f, " ({remedy})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}
