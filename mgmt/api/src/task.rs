//! Tasks: long operations ("Recent Tasks").

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One long operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: Uuid,
    /// What is done, such as `Power On Virtual Machine`.
    pub name: String,
    /// On what: a VM's id, a datastore's name, `host`.
    pub target: String,
    /// How it stands.
    pub state: TaskState,
    /// How much is done, in percent.
    pub progress: u8,
    /// What it is doing now, or how it ended, in one sentence.
    pub message: String,
    /// Whether it can be cancelled now.
    pub cancelable: bool,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<crate::Problem>,
    /// Who began it.
    pub who: String,
    /// When it began.
    pub started: jiff::Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<jiff::Timestamp>,
}

/// How a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It has not begun.
    Queued,
    /// It is at work.
    Running,
    /// It ended well.
    Success,
    /// It failed; `error` says why.
    Error,
}

impl TaskState {
    /// Whether the task has ended.
    pub fn ended(self) -> bool {
        matches!(self, Self::Success | Self::Error)
    }
}
