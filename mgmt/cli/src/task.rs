//! `task`, and following the tasks that other commands begin.

use keelson_api::client::Client;
use keelson_api::{Task, TaskState};

use crate::cli::TaskCommand;
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::Progress;

pub(crate) fn run(client: &Client, command: &TaskCommand, output: &Output) -> Result<(), Failure> {
    match command {
        TaskCommand::List => {
            output.list(&client.tasks()?, &["started", "name", "target", "state", "%", "who", "id"], |task| {
                vec![
                    task.started.to_string(),
                    task.name.clone(),
                    task.target.clone(),
                    state(task.state).into(),
                    task.progress.to_string(),
                    task.who.clone(),
                    task.id.to_string(),
                ]
            })
        }
        TaskCommand::Show { id } => show(&client.task(*id)?, output),
        TaskCommand::Wait { id } => follow(client, client.task(*id)?, false, output),
        TaskCommand::Cancel { id } => show(&client.cancel_task(*id)?, output),
    }
}

/// Waits for a task and shows how it ended; one that failed is a failure.
pub(crate) fn follow(client: &Client, task: Task, no_wait: bool, output: &Output) -> Result<(), Failure> {
    if no_wait {
        return show(&task, output);
    }
    let mut progress = Progress::start();
    let ended = client
        .task_end(task, |task| progress.say(&format!("{}: {}% {}", task.name, task.progress, task.message)));
    progress.end();
    let task = ended?;
    if task.state == TaskState::Error {
        if output.is_json() {
            show(&task, output)?;
        }
        return Err(Failure::TaskFailed(Box::new(task)));
    }
    show(&task, output)
}

pub(crate) fn show(task: &Task, output: &Output) -> Result<(), Failure> {
    output.one(task, || {
        let mut lines = vec![
            ("Task", task.name.clone()),
            ("Target", task.target.clone()),
            ("State", format!("{} ({}%)", state(task.state), task.progress)),
            ("Message", task.message.clone()),
            ("Id", task.id.to_string()),
        ];
        lines.extend(task.error.as_ref().map(|e| ("Error", e.to_string())));
        lines
    })
}

fn state(state: TaskState) -> &'static str {
    match state {
        TaskState::Queued => "queued",
        TaskState::Running => "running",
        TaskState::Success => "success",
        TaskState::Error => "error",
    }
}
