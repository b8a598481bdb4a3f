//! The file that says which tasks are at work, for the host agent's next start.

use std::path::PathBuf;

use keelson_api::{Fault, Problem, Task, TaskState};

/// The journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
}

impl Journal {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Writes down those of `tasks` that are at work. A failure is logged: the journal is a hint, and a full disk must not keep a VM
    /// from being powered off. It is not brought to the disk at once: a power cut ends the VMs too, and `boot_id` tells.
    pub(super) fn write<'a>(&self, tasks: impl Iterator<Item = &'a Task>) {
        let at_work: Vec<&Task> = tasks.filter(|t| !t.state.ended()).collect();
        let temporary = self.path.with_extension("new");
        let written = serde_json::to_vec(&at_work)
            .map_err(std::io::Error::other)
            .and_then(|json| std::fs::write(&temporary, json));
        if let Err(e) = written.and_then(|()| std::fs::rename(&temporary, &self.path)) {
            log::warn!("the journal of tasks {} could not be written: {e}", self.path.display());
        }
    }

    /// The tasks that were at work when the journal was written last, as failed ones.
    pub(super) fn interrupted(&self) -> Vec<Task> {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
            Err(e) => {
                log::warn!("the journal of tasks {} cannot be read: {e}", self.path.display());
                return Vec::new();
            }
        };
        let mut tasks: Vec<Task> = match serde_json::from_slice(&text) {
            Ok(tasks) => tasks,
            Err(e) => {
                log::warn!(
                    "the journal of tasks {} is not understood and is ignored: {e}",
                    self.path.display()
                );
                return Vec::new();
            }
        };
        for task in &mut tasks {
            let detail = format!(
                "the host agent was restarted while \"{}\" was at work on {}; whether it was carried out is not known",
                task.name, task.target
            );
            let problem = Problem::new(Fault::SystemError, detail)
                .remedy("look at the state of what it worked on, and begin it again if it is still wanted");
            log::warn!("task {}: {problem}", task.id);
            task.state = TaskState::Error;
            task.message = problem.to_string();
            task.error = Some(problem);
            task.cancelable = false;
            task.ended = Some(jiff::Timestamp::now());
        }
        tasks
    }
}
