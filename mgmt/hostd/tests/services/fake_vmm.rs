//! A VM's monitor as far as the host agent knows it: it takes its descriptors, answers on its control socket, echoes on its console.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use keelson_vmm_control::{Answer, MachineConfig, MachineState, Refusal, Request, Status, fd_names};
use keelson_wire::{Conn, Reply};

pub(crate) type Given = BTreeMap<String, OwnedFd>;
type Ended = Box<dyn Fn(i32, Option<String>) + Send + Sync>;

pub(crate) struct FakeVmm {
    pub(crate) config: MachineConfig,
    /// The names of all descriptors that it was given.
    pub(crate) names: Vec<String>,
    /// The size of guest memory, in bytes.
    pub(crate) memory_bytes: u64,
    dir: PathBuf,
    life: Mutex<Life>,
    ended: Ended,
}

struct Life {
    state: MachineState,
    resets: u64,
    /// Held while it lives: disk locks live as long.
    given: Option<Given>,
    control: Vec<Conn>,
    consoles: Vec<UnixStream>,
    printed: Vec<u8>,
    button_ignored: bool,
    buttons: u32,
}

impl FakeVmm {
    /// Starts it. A command line with `broken` makes it end at once, as a monitor does that cannot run its machine.
    pub(crate) fn start(
        dir: &Path,
        mut given: Given,
        ended: impl Fn(i32, Option<String>) + Send + Sync + 'static,
    ) -> Option<Arc<Self>> {
        std::fs::create_dir_all(dir).unwrap();
        let control = UnixListener::bind(dir.join("control.sock")).unwrap();
        let console = UnixListener::bind(dir.join("console.sock")).unwrap();
        let names = given.keys().cloned().collect();
        let mut text = String::new();
        File::from(given.remove(fd_names::CONFIG).unwrap()).read_to_string(&mut text).unwrap();
        let config: MachineConfig = serde_json::from_str(&text).unwrap();
        config.validate().unwrap();
        if config.boot.cmdline.contains("broken") {
            std::fs::remove_dir_all(dir).unwrap();
            ended(2, Some("this kernel cannot be loaded: the test says so".into()));
            return None;
        }
        let memory_bytes = File::from(given[fd_names::MEMORY].try_clone().unwrap()).metadata().unwrap().len();
        let button_ignored = config.boot.cmdline.contains("deaf");
        let life = Life {
            state: MachineState::Running,
            resets: 0,
            given: Some(given),
            control: vec![],
            consoles: vec![],
            printed: vec![],
            button_ignored,
            buttons: 0,
        };
        let vmm = Arc::new(Self {
            config,
            names,
            memory_bytes,
            dir: dir.to_owned(),
            life: Mutex::new(life),
            ended: Box::new(ended),
        });
        vmm.print(b"Hello from the guest\r\n");
        let one = Arc::clone(&vmm);
        std::thread::spawn(move || {
            for stream in control.incoming().map_while(Result::ok) {
                let vmm = Arc::clone(&one);
                std::thread::spawn(move || vmm.converse(Conn::from_stream(stream)));
            }
        });
        let two = Arc::clone(&vmm);
        std::thread::spawn(move || {
            for stream in console.incoming().map_while(Result::ok) {
                let vmm = Arc::clone(&two);
                std::thread::spawn(move || vmm.listen(stream));
            }
        });
        Some(vmm)
    }

    fn converse(self: Arc<Self>, conn: Conn) {
        {
            let mut life = self.life.lock().unwrap();
            if life.given.is_none() {
                return;
            }
            life.control.push(conn.try_clone().unwrap());
        }
        while let Ok(Some((request, _))) = conn.recv::<Request>() {
            let mut life = self.life.lock().unwrap();
            let (reply, end): (Reply<Answer, Refusal>, _) = match request {
                Request::Status => (Reply::Done(Answer::Status(self.status(&life))), None),
                Request::Pause => {
                    life.state = MachineState::Paused;
                    (Reply::Done(Answer::Done), None)
                }
                Request::Resume => {
                    life.state = MachineState::Running;
                    (Reply::Done(Answer::Done), None)
                }
                Request::Reset => {
                    life.resets += 1;
                    (Reply::Done(Answer::Done), None)
                }
                Request::PowerButton => {
                    life.buttons += 1;
                    (Reply::Done(Answer::Done), (!life.button_ignored).then_some(0))
                }
                Request::Kill => (Reply::Done(Answer::Done), Some(3)),
                Request::Suspend { .. } => panic!("nobody suspends here"),
                Request::Watch => panic!("nobody watches here"),
            };
            drop(life);
            let _ = conn.send(&reply, &[]);
            if let Some(code) = end {
                self.end(code, None);
            }
        }
    }

    fn status(&self, life: &Life) -> Status {
        Status {
            name: self.config.name.clone(),
            uuid: self.config.uuid,
            state: life.state,
            vcpus: self.config.vcpus,
            memory_mib: self.config.memory_mib,
            memory_touched_mib: 7,
            uptime_ms: 3000,
            start_us: 4000,
            resets: life.resets,
            version: "test".into(),
        }
    }

    fn listen(&self, mut stream: UnixStream) {
        let other;
        {
            let mut life = self.life.lock().unwrap();
            // Who typed and left may not want to read.
            let _ = stream.write_all(&life.printed);
            if life.given.is_none() {
                return;
            }
            let clone = stream.try_clone().unwrap();
            other = clone.as_raw_fd();
            life.consoles.push(clone);
        }
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            self.print(&[b"you typed: ", &bytes[..n]].concat());
        }
        let mut life = self.life.lock().unwrap();
        life.consoles.retain(|c| c.as_raw_fd() != other);
    }

    /// Prints on the serial port.
    pub(crate) fn print(&self, text: &[u8]) {
        let mut life = self.life.lock().unwrap();
        life.printed.extend_from_slice(text);
        life.consoles.retain(|mut c| c.write_all(text).is_ok());
        let log = life.given.as_ref().unwrap()[fd_names::CONSOLE_LOG].try_clone().unwrap();
        File::from(log).write_all(text).unwrap();
    }

    /// Ends the process: all sockets and descriptors go, then init sees it.
    pub(crate) fn end(&self, code: i32, error: Option<String>) {
        let mut life = self.life.lock().unwrap();
        if life.given.take().is_none() {
            return;
        }
        std::fs::remove_dir_all(&self.dir).unwrap();
        life.control.drain(..).for_each(|c| c.shutdown());
        life.consoles.drain(..).for_each(|c| drop(c.shutdown(Shutdown::Both)));
        drop(life);
        (self.ended)(code, error);
    }

    pub(crate) fn resets(&self) -> u64 {
        self.life.lock().unwrap().resets
    }

    pub(crate) fn consoles(&self) -> usize {
        self.life.lock().unwrap().consoles.len()
    }

    /// Whether the guest memory cannot be made smaller any more.
    pub(crate) fn memory_is_sealed(&self) -> bool {
        let life = self.life.lock().unwrap();
        let memory = &life.given.as_ref().unwrap()[fd_names::MEMORY];
        nix::unistd::ftruncate(memory, 4096).is_err() && memory.as_raw_fd() > 2
    }
}
