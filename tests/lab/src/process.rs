//! Child processes that never outlive their test: killed on drop, and by the kernel when the thread that started them ends.

use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// A running child.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    name: String,
    ended: Arc<(Mutex<Option<ExitStatus>>, Condvar)>,
    /// The child's pipes, where the command asked for them.
    pub stdin: Option<ChildStdin>,
    /// Its standard output.
    pub stdout: Option<ChildStdout>,
    /// Its standard error.
    pub stderr: Option<ChildStderr>,
}

/// A command for `program` whose process is killed when the calling thread ends (PR_SET_PDEATHSIG, prctl(2)).
pub fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]).stdin(Stdio::null());
    command
}

/// Runs a command to its end and returns what it printed; its error output is in the error when it fails.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} could not be started"))?;
    if !output.status.success() {
        bail!(
            "{program} {} failed ({}): {}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Process {
    /// Starts it.
    pub fn spawn(command: &mut Command, name: &str) -> Result<Self> {
        let mut child = command.spawn().with_context(|| format!("{name} could not be started"))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id beyond pid_t")?);
        let ended = Arc::new((Mutex::new(None), Condvar::new()));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let shared = Arc::clone(&ended);
        std::thread::spawn(move || reap(pid, child, &shared));
        Ok(Self { pid, name: name.into(), ended, stdin, stdout, stderr })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        *lock(&self.ended.0)
    }

    /// Waits for its end, at most so long.
    pub fn wait(&self, within: Duration) -> Result<ExitStatus> {
        let (status, _) = self
            .ended
            .1
            .wait_timeout_while(lock(&self.ended.0), within, |s| s.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        status.with_context(|| format!("{} has not ended within {within:?}", self.name))
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        // Under the lock that `reap` takes before it gives the pid back, so the number cannot be another process's.
        let ended = lock(&self.ended.0);
        if ended.is_none() {
            let _ = kill(self.pid, signal);
        }
    }

    /// Kills it, as a power cut would, and waits until it is gone.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
        let _ = self.wait(Duration::from_secs(30));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reap(pid: Pid, mut child: Child, ended: &(Mutex<Option<ExitStatus>>, Condvar)) {
    while let Err(nix::errno::Errno::EINTR) =
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
    {}
    let mut slot = lock(&ended.0);
    *slot = child.wait().ok();
    ended.1.notify_all();
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A fresh directory for one test's files, below `KEELSON_SCRATCH` where that is set.
pub fn scratch(name: &str) -> Result<tempfile::TempDir> {
    let root = std::env::var_os("KEELSON_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
    std::fs::create_dir_all(&root)?;
    tempfile::Builder::new()
        .prefix(&format!("keelson-{name}-"))
        .tempdir_in(root)
        .context("no scratch directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_reported_and_a_drop_kills() {
        let quick = Process::spawn(&mut Command::new("true"), "true").unwrap();
        assert!(quick.wait(Duration::from_secs(10)).unwrap().success());
        let slow = Process::spawn(bound("sleep").arg("1000"), "sleep").unwrap();
        let pid = Pid::from_raw(slow.pid());
        assert!(slow.ended().is_none());
        drop(slow);
        assert!(kill(pid, None).is_err());
    }
}
