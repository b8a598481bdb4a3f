//! Datastores and the files on them. A file is written `[datastore] dir/file`.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A place for VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datastore {
    /// Its name, such as `datastore1`.
    pub name: String,
    /// Its identity, from the file `.keelson-datastore` on it.
    pub uuid: Uuid,
    /// What it is on: `local` (the state partition) or `ram` (gone at power-off).
    pub kind: String,
    /// Its size, in bytes.
    pub capacity_bytes: u64,
    /// What is left, in bytes.
    pub free_bytes: u64,
    /// Whether it can be used.
    pub accessible: bool,
}

/// A file or directory on a datastore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its path on the datastore, such as `[datastore1] isos/debian.iso`.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// What it takes on the datastore, in bytes (less than its size when it is sparse).
    pub allocated_bytes: u64,
    /// When it was written last.
    pub modified: jiff::Timestamp,
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
}
