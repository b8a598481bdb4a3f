//! A machine and its saved state: suspending, being brought back, and the moment from which on a state is no longer true.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Instant;

use keelson_init_control::logging::chain;
use keelson_vmm_control::{MachineState, Refusal, StateSet};

use super::{Machine, Order, board_saved};
use crate::state::StateError;
use crate::state::file::{Opened, PairId, StateFile};
use crate::state::fill::Filling;
use crate::state::identity::{self, IdentityV1};
use crate::state::memory::{self, MemoryFile};
use crate::state::sections::Sections;

/// The state from which a machine is brought back rather than booted.
#[derive(Debug)]
pub struct Restore {
    /// The state file, read.
    pub state: Opened,
    /// The memory file.
    pub memory: File,
    /// `/dev/userfaultfd`: memory then comes as it is needed.
    pub userfaultfd: Option<OwnedFd>,
}

impl Machine {
    /// Checks whose state it is, and lets memory come.
    pub(super) fn take_state(&mut self, restore: Restore) -> Result<Sections, StateError> {
        let Restore { state: Opened { file, id, mut sections }, memory, userfaultfd } = restore;
        let identity: IdentityV1 = sections.take(identity::KIND, 0)?;
        identity.check(&self.parts.config)?;
        let memory = MemoryFile::open(memory, &id, self.parts.memory.bytes)?;
        let sender = self.sender.clone();
        // Nobody listens any more only when the machine has ended.
        let tell = move |why| drop(sender.send(Order::MemoryLost(why)));
        self.filling = Some(Filling::start(&self.parts.memory, memory, userfaultfd, Box::new(tell))?);
        self.state_file = Some(file);
        Ok(sections)
    }

    /// The guest is about to run: a state that was true until now is no longer, durably.
    pub(super) fn use_state_up(&mut self) -> Result<(), StateError> {
        if let Some(file) = &self.state_file {
            file.mark_used()?;
        }
        self.state_file = None;
        Ok(())
    }

    /// Pauses the machine and saves its state. When that fails, it is as it was.
    pub(super) fn suspend(&mut self, set: StateSet, state: File, memory: File) -> Result<(), Refusal> {
        if let Some(filling) = &self.filling {
            // While the guest may still run.
            filling.wait().map_err(Refusal::Failed)?;
        }
        let ran = self.state == MachineState::Running;
        if ran {
            self.pause()?;
        }
        let began = Instant::now();
        match self.save(set, state, &memory) {
            Ok((file, written)) => {
                let took = began.elapsed().as_millis();
                log::info!("suspended: {} MiB of memory saved in {took} ms", written >> 20);
                self.state_file = Some(file);
                Ok(())
            }
            Err(why) => {
                if ran {
                    self.resume();
                }
                Err(Refusal::Failed(format!("the machine could not be suspended: {why}")))
            }
        }
    }

    /// Writes memory and state of the paused machine; returns the state file and how many bytes of memory were written.
    fn save(&mut self, set: StateSet, state: File, memory: &File) -> Result<(StateFile, u64), String> {
        // Of two states of one machine only one may be used. One that another process has used already is kept: it bars the way here.
        self.use_state_up().map_err(|e| chain(&e))?;
        let board = self.board.as_ref().ok_or("it has no board")?;
        let mut id = PairId::default();
        getrandom::fill(&mut id).map_err(|e| format!("the host has no random bytes: {e}"))?;
        let mut sections = Sections::new();
        board_saved::put(&mut sections, identity::KIND, 0, &IdentityV1::of(&self.parts.config), set)
            .map_err(|e| chain(&e))?;
        board.save(&mut sections, set).map_err(|e| chain(&e))?;
        let parts = &self.parts.memory;
        let written = memory::write(&parts.file, parts.bytes, memory, &id).map_err(|e| chain(&e))?;
        let file = StateFile::write(state, &id, &sections).map_err(|e| chain(&e))?;
        Ok((file, written))
    }
}
