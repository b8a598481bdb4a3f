//! Bringing memory back while the guest runs: a page comes when something touches it first, and all others in the background.
//!
//! Guest memory stays what it is in a machine that was started: a memfd, shared, which init can keep and a migration can send. Its pages are
//! put there by userfaultfd(2), by one thread. Whoever touches a page that is not there yet waits for it: vCPUs, workers of devices and the
//! kernel on their behalf. When all is there, the thread ends and nothing of this is left.
//!
//! Without userfaultfd everything is copied before the machine runs.

#[allow(unsafe_code)]
mod sys;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use vm_memory::GuestMemoryBackend;

use super::StateError;
use super::memory::{MemoryFile, PAGE};
use crate::memory::{GuestRam, Memory};
use sys::Faults;

/// What is brought for one access: its neighbours are often next.
const BLOCK: u64 = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Progress {
    Filling,
    Whole,
    Lost(String),
}

/// Memory on its way back.
#[derive(Debug, Clone)]
pub struct Filling(Arc<(Mutex<Progress>, Condvar)>);

/// Told when saved memory cannot be read: whatever needs it waits for ever, so the machine cannot go on.
pub type TellLost = Box<dyn Fn(String) + Send>;

impl Filling {
    /// Fills `memory`, which nobody has touched, from `saved`: through userfaultfd when `device` (`/dev/userfaultfd`) is there, else at once.
    pub fn start(
        memory: &Memory,
        saved: MemoryFile,
        device: Option<OwnedFd>,
        tell: TellLost,
    ) -> Result<Self, StateError> {
        if memory.touched() != 0 {
            let source = io::Error::other("it holds something already; it must be a fresh memfd");
            return Err(StateError::Io { what: "fill the memory descriptor", source });
        }
        let filling = Self(Arc::new((Mutex::new(Progress::Filling), Condvar::new())));
        let Some(device) = device else {
            copy_all(&saved, &memory.file).map_err(StateError::doing("copy the saved memory"))?;
            filling.set(Progress::Whole);
            return Ok(filling);
        };
        let doing = || StateError::doing("have memory brought as it is needed (userfaultfd)");
        let faults = Faults::open(device.as_fd()).map_err(doing())?;
        for region in memory.ram.iter() {
            faults.register(region).map_err(doing())?;
        }
        let filler = Filler::new(memory, saved, faults);
        let shared = filling.clone();
        let thread = std::thread::Builder::new().name("fill".into());
        thread
            .spawn(move || match filler.run() {
                Ok(()) => shared.set(Progress::Whole),
                Err((e, faults)) => {
                    let why = format!("the saved memory cannot be read, so the machine cannot go on: {e}");
                    shared.set(Progress::Lost(why.clone()));
                    // While the descriptor lives, nobody takes a page that is missing for a page of zeroes.
                    std::mem::forget(faults);
                    tell(why);
                }
            })
            .map_err(StateError::doing("start the thread that brings memory back"))?;
        Ok(filling)
    }

    fn set(&self, progress: Progress) {
        let (now, changed) = &*self.0;
        *now.lock().unwrap_or_else(PoisonError::into_inner) = progress;
        changed.notify_all();
    }

    /// Whether something will never be there.
    pub fn is_lost(&self) -> bool {
        matches!(*self.0.0.lock().unwrap_or_else(PoisonError::into_inner), Progress::Lost(_))
    }

    /// Waits until everything is there; why it never will be.
    pub fn wait(&self) -> Result<(), String> {
        let (now, changed) = &*self.0;
        let mut progress = now.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*progress {
                Progress::Whole => return Ok(()),
                Progress::Lost(why) => return Err(why.clone()),
                Progress::Filling => {
                    progress = changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// Copies the whole memory file into the memfd; holes stay holes.
fn copy_all(saved: &MemoryFile, memory: &File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while let Some(run) = saved.next_run(at, saved.bytes())? {
        at = run.start;
        while at < run.end {
            let length = usize::try_from(run.end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let part = buffer.get_mut(..length).unwrap_or_default();
            saved.read(part, at)?;
            memory.write_all_at(part, at)?;
            at += u64::try_from(length).unwrap_or_default();
        }
    }
    Ok(())
}

/// The one that puts pages.
struct Filler {
    ram: GuestRam,
    /// Where each region begins in the file.
    starts: Vec<u64>,
    saved: MemoryFile,
    faults: Faults,
    /// The blocks of the file whose saved pages are there.
    done: Vec<bool>,
    buffer: Vec<u8>,
}

impl Filler {
    fn new(memory: &Memory, saved: MemoryFile, faults: Faults) -> Self {
        let sizes = crate::memory::layout(memory.bytes).into_iter().map(|(_, length)| length);
        let starts = sizes.scan(0, |next, length| Some(std::mem::replace(next, *next + length)));
        let blocks = usize::try_from(memory.bytes.div_ceil(BLOCK)).unwrap_or(usize::MAX);
        let buffer = vec![0; usize::try_from(BLOCK).unwrap_or_default()];
        Self {
            ram: memory.ram.clone(),
            starts: starts.collect(),
            saved,
            faults,
            done: vec![false; blocks],
            buffer,
        }
    }

    /// Serves accesses first, and between them the next part of the file, until all of it is there.
    fn run(mut self) -> Result<(), (io::Error, Faults)> {
        match self.fill() {
            Ok(()) => Ok(()),
            Err(e) => Err((e, self.faults)),
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut next = 0;
        loop {
            while let Some(address) = self.faults.next()? {
                self.serve(address)?;
            }
            let Some(run) = self.saved.next_run(next, self.saved.bytes())? else { break };
            let block = run.start / BLOCK;
            self.bring(block)?;
            next = (block + 1) * BLOCK;
        }
        // An access that waits meanwhile finds a page of zeroes, which is what it is.
        self.ram.iter().try_for_each(|region| self.faults.unregister(region))
    }

    fn serve(&mut self, address: u64) -> io::Result<()> {
        let found = self
            .ram
            .iter()
            .zip(&self.starts)
            .find_map(|(region, start)| Some(start + Faults::offset_in(region, address)? / PAGE * PAGE));
        let Some(page) = found else { return Err(io::Error::other("an access outside guest memory waits")) };
        self.bring(page / BLOCK)?;
        // In a hole of the file; or it is there since, and whoever waited is woken again.
        let zeroes = [0; PAGE as usize];
        self.put(page, &zeroes)
    }

    /// Puts the saved pages of a block.
    fn bring(&mut self, block: u64) -> io::Result<()> {
        let known = usize::try_from(block).ok().and_then(|index| self.done.get_mut(index));
        if known.is_none_or(|done| std::mem::replace(done, true)) {
            return Ok(());
        }
        let (mut at, end) = (block * BLOCK, (block + 1) * BLOCK);
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(run) = self.saved.next_run(at, end)? {
            // File systems may have other blocks than pages.
            let (start, stop) = (run.start / PAGE * PAGE, run.end.next_multiple_of(PAGE).min(end));
            let length = usize::try_from(stop - start).unwrap_or_default();
            let pages = buffer.get_mut(..length).unwrap_or_default();
            self.saved.read(pages, start)?;
            self.put(start, pages)?;
            at = stop;
        }
        self.buffer = buffer;
        Ok(())
    }

    fn put(&self, at: u64, pages: &[u8]) -> io::Result<()> {
        // Blocks do not cross regions: those begin at multiples of a MiB.
        let place = self.ram.iter().zip(&self.starts).filter(|(_, start)| **start <= at).last();
        match place {
            Some((region, start)) => self.faults.put(region, at - start, pages),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::memory;
    use proptest::prelude::*;
    use std::sync::mpsc::channel;
    use vm_memory::{Bytes, GuestAddress};

    const ID: [u8; 16] = [1; 16];

    /// A machine's memory with these pages (numbers and bytes), saved: the memory file.
    fn saved(mib: u64, pages: &[(u64, u8)]) -> File {
        let (memory, file) = (Memory::new(mib, None).unwrap(), tempfile::tempfile().unwrap());
        for (page, value) in pages {
            memory.file.write_all_at(&[*value; PAGE as usize], page * PAGE).unwrap();
        }
        memory::write(&memory.file, memory.bytes, &file, &ID).unwrap();
        file
    }

    fn device() -> Option<OwnedFd> {
        let opened = File::options().read(true).write(true).open("/dev/userfaultfd");
        if let Err(e) = &opened {
            eprintln!("SKIPPED in part: /dev/userfaultfd: {e}");
        }
        opened.ok().map(OwnedFd::from)
    }

    fn never() -> TellLost {
        Box::new(|why| panic!("{why}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        /// Readers and writers of any page, while pages come.
        #[test]
        fn whoever_touches_a_page_finds_what_was_saved(
            pages in prop::collection::btree_map(0u64..4096, 1u8.., 0..60), first in 0u64..4096, by_need: bool,
        ) {
            let pages: Vec<_> = pages.into_iter().collect();
            let memory = Memory::new(16, None).unwrap();
            let file = MemoryFile::open(saved(16, &pages), &ID, memory.bytes).unwrap();
            let device = if by_need { device() } else { None };
            let filling = Filling::start(&memory, file, device, never()).unwrap();
            std::thread::scope(|scope| {
                for reader in 0..3 {
                    let (ram, pages) = (&memory.ram, &pages);
                    scope.spawn(move || {
                        for n in 0..4096 {
                            let page = (first + n * (reader * 2 + 1)) % 4096;
                            let mut bytes = [0; 8];
                            ram.read_slice(&mut bytes, GuestAddress(page * PAGE + 16)).unwrap();
                            let expected = pages.iter().find(|(number, _)| *number == page).map_or(0, |p| p.1);
                            assert_eq!(bytes, [expected; 8], "page {page}");
                            // What is written while memory comes stays.
                            ram.write_obj(page, GuestAddress(page * PAGE + 8 * (100 + reader))).unwrap();
                        }
                    });
                }
            });
            filling.wait().unwrap();
            for page in 0..4096u64 {
                for reader in 0..3 {
                    let at = GuestAddress(page * PAGE + 8 * (100 + reader));
                    prop_assert_eq!(memory.ram.read_obj::<u64>(at).unwrap(), page);
                }
            }
        }
    }

    #[test]
    fn holes_stay_holes_on_both_sides_of_the_pci_hole() {
        for device in [device(), None] {
            let high = 3 << 18;
            let memory = Memory::new(5 << 10, None).unwrap();
            let file = MemoryFile::open(saved(5 << 10, &[(3, 3), (high + 7, 7)]), &ID, memory.bytes).unwrap();
            let filling = Filling::start(&memory, file, device, never()).unwrap();
            let byte = |at| memory.ram.read_obj::<u8>(GuestAddress(at)).unwrap();
            assert_eq!((byte(3 * PAGE), byte((4 << 30) + 7 * PAGE)), (3, 7));
            filling.wait().unwrap();
            assert!(memory.touched() < 64 * PAGE, "{} bytes are allocated", memory.touched());
        }
    }

    #[test]
    fn memory_that_cannot_be_read_is_told_and_never_taken_for_zeroes() {
        let memory = Memory::new(16, None).unwrap();
        let file = saved(16, &[(5, 5), (4000, 4)]);
        let opened = MemoryFile::open(file.try_clone().unwrap(), &ID, memory.bytes).unwrap();
        // Changed after it was looked at: what was its third block ends within a page.
        file.set_len(5 * PAGE + 100).unwrap();
        let Some(device) = device() else { return };
        let (sender, told) = channel();
        let tell = Box::new(move |why| sender.send(why).unwrap());
        let filling = Filling::start(&memory, opened, Some(device), tell).unwrap();
        let why = told.recv().unwrap();
        assert!(why.contains("cannot be read"), "{why}");
        assert!(filling.is_lost());
        assert_eq!(filling.wait(), Err(why));
    }

    #[test]
    fn memory_that_holds_something_is_not_filled() {
        let memory = Memory::new(16, None).unwrap();
        memory.ram.write_obj(1u8, GuestAddress(0)).unwrap();
        let file = MemoryFile::open(saved(16, &[]), &ID, memory.bytes).unwrap();
        assert!(Filling::start(&memory, file, None, never()).is_err());
    }
}
