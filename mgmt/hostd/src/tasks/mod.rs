//! Tasks ("Recent Tasks"): each long operation runs on a thread of its own, says how far it is, and ends with one sentence.
//!
//! At most one task or immediate change works on a target at a time ([`Tasks::hold`]). The registry remembers the last
//! [`REMEMBERED`] tasks. Those at work are also written to a journal file, so that a host agent that was killed can say
//! honestly at its next start what it was doing; the journal is a hint for people, never proof of what happened.

mod journal;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keelson_api::{Fault, Problem, Task, TaskState};
use uuid::Uuid;

use journal::Journal;

/// How many tasks that have ended are remembered.
pub const REMEMBERED: usize = 500;
/// How many tasks may be at work at a time.
pub const MAX_AT_WORK: usize = 64;

/// What a task's message is at most, in characters: errors of others are in it.
const MAX_MESSAGE: usize = 1000;

/// All tasks of this host agent.
pub struct Tasks {
    registry: Mutex<Registry>,
    changed: Condvar,
    journal: Journal,
}

#[derive(Default)]
struct Registry {
    /// Oldest first.
    tasks: VecDeque<Entry>,
    /// What is being worked on, and what is being done to it.
    held: BTreeMap<String, String>,
}

struct Entry {
    task: Task,
    cancelled: Arc<AtomicBool>,
    /// Called, outside the lock, when the task is cancelled: it wakes up whatever the task waits for.
    wake: Arc<dyn Fn() + Send + Sync>,
}

/// What a task is.
pub struct Plan {
    /// Such as `Power On Virtual Machine`.
    pub name: &'static str,
    /// What it works on, held while it does.
    pub target: String,
    /// Who began it.
    pub who: String,
    /// Called when it is cancelled; `None` when it cannot be.
    pub cancel: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// A target is worked on while this exists.
#[derive(Debug)]
pub struct Hold {
    tasks: Arc<Tasks>,
    target: String,
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks").finish_non_exhaustive()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.tasks.lock().held.remove(&self.target);
        self.tasks.changed.notify_all();
    }
}

/// How a running task tells how far it is.
#[derive(Debug, Clone)]
pub struct Progress {
    tasks: Arc<Tasks>,
    id: Uuid,
    cancelled: Arc<AtomicBool>,
}

impl Tasks {
    /// The registry, with what the journal at `journal` says of tasks that the last end of the host agent interrupted.
    pub fn new(journal: PathBuf) -> Arc<Self> {
        let journal = Journal::at(journal);
        let tasks = journal
            .interrupted()
            .into_iter()
            .map(|task| Entry { task, cancelled: Arc::default(), wake: Arc::new(|| {}) })
            .collect();
        Arc::new(Self {
            registry: Mutex::new(Registry { tasks, held: BTreeMap::new() }),
            changed: Condvar::new(),
            journal,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // Each change under this lock is complete in itself, so a panic elsewhere leaves nothing half done.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes hold of `target` to do `what` to it; refused while somebody else does.
    pub fn hold(self: &Arc<Self>, target: &str, what: &str) -> Result<Hold, Problem> {
        let mut registry = self.lock();
        if let Some(other) = registry.held.get(target) {
            let detail = format!("\"{other}\" is at work on {target}");
            return Err(Problem::new(Fault::TaskInProgress, detail)
                .remedy("wait for it to end, or cancel it, then try again"));
        }
        registry.held.insert(target.into(), what.into());
        Ok(Hold { tasks: Arc::clone(self), target: target.into() })
    }

    /// Begins a task on a thread of its own. `work` returns the sentence that it ends with.
    pub fn start(
        self: &Arc<Self>,
        plan: Plan,
        work: impl FnOnce(&Progress) -> Result<String, Problem> + Send + 'static,
    ) -> Result<Task, Problem> {
        let hold = self.hold(&plan.target, plan.name)?;
        self.start_held(hold, plan, work)
    }

    /// The same for a target that is held already.
    pub fn start_held(
        self: &Arc<Self>,
        hold: Hold,
        plan: Plan,
        work: impl FnOnce(&Progress) -> Result<String, Problem> + Send + 'static,
    ) -> Result<Task, Problem> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let task = Task {
            id: Uuid::new_v4(),
            name: plan.name.into(),
            target: plan.target,
            state: TaskState::Running,
            progress: 0,
            message: "Begun".into(),
            cancelable: plan.cancel.is_some(),
            error: None,
            who: plan.who,
            started: jiff::Timestamp::now(),
            ended: None,
        };
        {
            let mut registry = self.lock();
            if registry.tasks.iter().filter(|e| !e.task.state.ended()).count() >= MAX_AT_WORK {
                return Err(Problem::new(
                    Fault::TooManyRequests,
                    format!("{MAX_AT_WORK} tasks are at work already"),
                )
                .remedy("wait until some have ended"));
            }
            registry.tasks.push_back(Entry {
                task: task.clone(),
                cancelled: Arc::clone(&cancelled),
                wake: plan.cancel.unwrap_or_else(|| Arc::new(|| {})),
            });
            registry.forget();
            self.journal.write(registry.tasks.iter().map(|e| &e.task));
        }
        let progress = Progress { tasks: Arc::clone(self), id: task.id, cancelled };
        let spawned = std::thread::Builder::new().name("task".into()).spawn({
            let progress = progress.clone();
            move || {
                let outcome = work(&progress);
                // Released first: who sees the task ended must be able to begin the next one.
                drop(hold);
                progress.end(outcome);
            }
        });
        if let Err(e) = spawned {
            let problem = Problem::new(Fault::SystemError, format!("no thread for the task: {e}"))
                .remedy("try again when the host is less busy");
            progress.end(Err(problem.clone()));
            return Err(problem);
        }
        log::info!("task {} \"{}\" on {} was begun by {}", task.id, task.name, task.target, task.who);
        Ok(task)
    }

    /// All remembered tasks, newest first.
    pub fn list(&self) -> Vec<Task> {
        self.lock().tasks.iter().rev().map(|e| e.task.clone()).collect()
    }

    /// One task; waits until it has ended, but at most `wait`.
    pub fn get(&self, id: Uuid, wait: Duration) -> Result<Task, Problem> {
        let until = Instant::now() + wait;
        let mut registry = self.lock();
        loop {
            let task = registry.find(id)?.task.clone();
            let left = until.saturating_duration_since(Instant::now());
            if task.state.ended() || left.is_zero() {
                return Ok(task);
            }
            registry = self.changed.wait_timeout(registry, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks a task to stop; it ends as soon as it can, with an error that says so.
    pub fn cancel(&self, id: Uuid) -> Result<Task, Problem> {
        let (task, wake) = {
            let registry = self.lock();
            let entry = registry.find(id)?;
            if entry.task.state.ended() || !entry.task.cancelable {
                let why =
                    if entry.task.state.ended() { "it has ended" } else { "it cannot be cancelled now" };
                let detail =
                    format!("\"{}\" on {} was not cancelled: {why}", entry.task.name, entry.task.target);
                return Err(Problem::new(Fault::InvalidPowerState, detail).remedy("read the task again"));
            }
            entry.cancelled.store(true, Ordering::SeqCst);
            (entry.task.clone(), Arc::clone(&entry.wake))
        };
        wake();
        Ok(task)
    }
}

impl Registry {
    fn find(&self, id: Uuid) -> Result<&Entry, Problem> {
        let found = self.tasks.iter().find(|e| e.task.id == id);
        found.ok_or_else(|| {
            Problem::new(Fault::NotFound, format!("there is no task {id}"))
                .remedy(format!("the last {REMEMBERED} tasks are remembered: list them"))
        })
    }

    /// Forgets the oldest tasks that have ended.
    fn forget(&mut self) {
        while self.tasks.len() > REMEMBERED {
            let Some(oldest) = self.tasks.iter().position(|e| e.task.state.ended()) else { return };
            self.tasks.remove(oldest);
        }
    }
}

impl Progress {
    /// Says what is being done now, and how much of the whole is done, in percent.
    pub fn say(&self, percent: u8, message: impl Into<String>) {
        self.change(|task| {
            task.progress = percent.min(99).max(task.progress);
            task.message = message.into();
        });
    }

    /// From here on the task cannot be cancelled: it is too far.
    pub fn not_cancelable(&self) -> Result<(), Problem> {
        self.check()?;
        self.change(|task| task.cancelable = false);
        // A cancel that came between the two was promised to its caller.
        self.check()
    }

    /// Whether the task was asked to stop.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// The error that a cancelled task ends with.
    pub fn check(&self) -> Result<(), Problem> {
        if self.cancelled() {
            Err(Problem::new(Fault::SystemError, "the task was cancelled")
                .remedy("begin it again if it is still wanted"))
        } else {
            Ok(())
        }
    }

    fn end(&self, outcome: Result<String, Problem>) {
        self.change(|task| {
            task.ended = Some(jiff::Timestamp::now());
            task.cancelable = false;
            match outcome {
                Ok(message) => {
                    log::info!("task {} \"{}\" on {} ended well: {message}", task.id, task.name, task.target);
                    (task.state, task.progress, task.message) = (TaskState::Success, 100, message);
                }
                Err(problem) => {
                    log::warn!("task {} \"{}\" on {} failed: {problem}", task.id, task.name, task.target);
                    (task.state, task.message) = (TaskState::Error, problem.to_string());
                    task.error = Some(problem);
                }
            }
        });
        let registry = self.tasks.lock();
        self.tasks.journal.write(registry.tasks.iter().map(|e| &e.task));
    }

    fn change(&self, change: impl FnOnce(&mut Task)) {
        let mut registry = self.tasks.lock();
        if let Some(entry) = registry.tasks.iter_mut().find(|e| e.task.id == self.id) {
            change(&mut entry.task);
            if let Some((end, _)) = entry.task.message.char_indices().nth(MAX_MESSAGE) {
                entry.task.message.truncate(end);
            }
        }
        drop(registry);
        self.tasks.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn plan(target: &str) -> Plan {
        Plan { name: "Test", target: target.into(), who: "root".into(), cancel: None }
    }

    fn registry() -> (tempfile::TempDir, Arc<Tasks>) {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new(dir.path().join("tasks.json"));
        (dir, tasks)
    }

    #[test]
    fn a_target_is_worked_on_by_one_task() {
        let (_dir, tasks) = registry();
        let (go, wait) = channel::<()>();
        let first =
            tasks.start(plan("vm"), move |_| Ok(wait.recv().map_or("no".into(), |()| "yes".into()))).unwrap();
        assert_eq!(tasks.start(plan("vm"), |_| Ok(String::new())).unwrap_err().fault, Fault::TaskInProgress);
        assert_eq!(tasks.hold("vm", "x").unwrap_err().fault, Fault::TaskInProgress);
        let other = tasks.start(plan("other"), |_| Ok(String::new())).unwrap();
        assert_eq!(tasks.get(other.id, Duration::from_secs(10)).unwrap().state, TaskState::Success);
        assert_eq!(tasks.get(first.id, Duration::ZERO).unwrap().state, TaskState::Running);
        go.send(()).unwrap();
        let ended = tasks.get(first.id, Duration::from_secs(10)).unwrap();
        assert_eq!((ended.state, ended.message.as_str(), ended.progress), (TaskState::Success, "yes", 100));
        // Whoever saw the end can begin the next.
        tasks.start(plan("vm"), |_| Ok(String::new())).unwrap();
    }

    #[test]
    fn a_cancelled_task_is_woken_and_says_so() {
        let (_dir, tasks) = registry();
        let (wake, woken) = channel::<()>();
        let wake = Mutex::new(wake);
        let cancel: Arc<dyn Fn() + Send + Sync> = Arc::new(move || wake.lock().unwrap().send(()).unwrap());
        let task = tasks
            .start(Plan { cancel: Some(cancel), ..plan("vm") }, move |p| {
                woken.recv().map_or(Ok(String::new()), |()| p.check().map(|()| String::new()))
            })
            .unwrap();
        tasks.cancel(task.id).unwrap();
        let ended = tasks.get(task.id, Duration::from_secs(10)).unwrap();
        assert_eq!(ended.state, TaskState::Error);
        assert!(ended.error.unwrap().detail.contains("cancelled"));
        assert!(tasks.cancel(task.id).is_err());
    }

    #[test]
    fn a_task_that_was_interrupted_is_told_as_failed() {
        let (dir, tasks) = registry();
        let (_go, wait) = channel::<()>();
        let task = tasks
            .start(plan("vm"), move |_| Ok(wait.recv().map_or(String::new(), |()| String::new())))
            .unwrap();
        let after = Tasks::new(dir.path().join("tasks.json"));
        let told = after.get(task.id, Duration::ZERO).unwrap();
        assert_eq!(told.state, TaskState::Error);
        assert!(told.message.contains("restarted"), "{}", told.message);
        assert!(after.hold("vm", "next").is_ok());
        // Told once: the journal of the new registry holds only what it does itself.
        let once = after.start(plan("x"), |_| Ok(String::new())).unwrap();
        after.get(once.id, Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn the_registry_is_bounded_and_keeps_the_newest() {
        let (_dir, tasks) = registry();
        let mut last = None;
        for n in 0..REMEMBERED + 20 {
            let task = tasks.start(plan(&n.to_string()), |_| Ok(String::new())).unwrap();
            tasks.get(task.id, Duration::from_secs(10)).unwrap();
            last = Some(task.id);
        }
        let list = tasks.list();
        assert_eq!(list.len(), REMEMBERED);
        assert_eq!(list.first().map(|t| t.id), last);
    }

    proptest::proptest! {
        #[test]
        fn progress_never_goes_back(steps in proptest::collection::vec(0u8.., 1..20)) {
            let (_dir, tasks) = registry();
            let (send, seen) = channel();
            let task = tasks.start(plan("vm"), move |p| {
                for step in steps {
                    p.say(step, "on");
                    let now = p.tasks.get(p.id, Duration::ZERO)?.progress;
                    send.send(now).unwrap();
                }
                Ok(String::new())
            }).unwrap();
            tasks.get(task.id, Duration::from_secs(10)).unwrap();
            let seen: Vec<u8> = seen.iter().collect();
            assert!(seen.is_sorted() && seen.iter().all(|p| *p < 100));
        }
    }
}
