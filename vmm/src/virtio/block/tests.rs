//! A disk, driven as Linux drives it and as it must not be driven.

use std::io::Write;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::pci::function::PciFunction;
use crate::virtio::testing::{Harness, PATIENCE};

const SECTORS: u64 = 64;
const IN: u32 = 0;
const OUT: u32 = 1;
const GET_ID: u32 = 8;

/// A disk whose sector n is filled with n.
fn file() -> File {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; SECTOR as usize]).unwrap();
    }
    file
}

fn disk(file: &File, read_only: bool) -> Harness<Block> {
    let mut harness = Harness::new(Block::new(file.try_clone().unwrap(), read_only, "disk-0").unwrap());
    harness.bring_up(u64::MAX);
    harness
}

fn header(h: &mut Harness<Block>, kind: u32, sector: u64) -> (u64, u32) {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    (h.buffer_with(&bytes), 16)
}

/// Reads `length` bytes at `sector`: status, used length, data.
fn read(h: &mut Harness<Block>, sector: u64, length: u32) -> (u8, u32, Vec<u8>) {
    let (header, data, status) = (header(h, IN, sector), h.buffer(length), h.buffer_with(&[0xee]));
    let used = h.request(0, &[header], &[(data, length), (status, 1)]);
    (h.bytes(status, 1)[0], used, h.bytes(data, length as usize))
}

fn write(h: &mut Harness<Block>, sector: u64, data: &[u8]) -> u8 {
    let (header, data, status) =
        (header(h, OUT, sector), (h.buffer_with(data), data.len() as u32), h.buffer_with(&[0xee]));
    assert_eq!(h.request(0, &[header, data], &[(status, 1)]), 1);
    h.bytes(status, 1)[0]
}

#[test]
fn sectors_are_read_and_written_where_they_are() {
    let file = file();
    let mut h = disk(&file, false);
    let (status, used, data) = read(&mut h, 3, 1024);
    assert_eq!((status, used), (0, 1025));
    assert_eq!(data, [[3; 512], [4; 512]].concat());
    assert_eq!(write(&mut h, SECTORS - 1, &[0xaa; 512]), 0);
    let mut last = [0; 512];
    file.read_exact_at(&mut last, (SECTORS - 1) * 512).unwrap();
    assert_eq!(last, [0xaa; 512]);
}

#[test]
fn what_lies_beyond_the_end_or_between_sectors_is_an_error() {
    let file = file();
    let mut h = disk(&file, false);
    for (sector, length) in
        [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 100), (0, 513)]
    {
        let (status, used, data) = read(&mut h, sector, length);
        assert_eq!((status, used), (1, 0), "sector {sector}, {length} bytes");
        assert!(data.iter().all(|b| *b == 0));
    }
    assert_eq!(write(&mut h, SECTORS, &[1; 512]), 1);
    assert_eq!(write(&mut h, 0, &[1; 511]), 1);
    assert_eq!(file.metadata().unwrap().len(), SECTORS * 512, "the file has not grown");
    let (status, used, _) = read(&mut h, 0, 512);
    assert_eq!((status, used), (0, 513), "the disk still works");
}

#[test]
fn a_read_only_disk_says_so_and_is_not_written() {
    let file = file();
    let mut h = Harness::new(Block::new(file.try_clone().unwrap(), true, "").unwrap());
    assert_ne!(h.offered() & READ_ONLY, 0);
    h.bring_up(u64::MAX);
    assert_eq!(write(&mut h, 0, &[1; 512]), 1);
    let mut first = [9; 512];
    file.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, [0; 512]);
}

#[test]
fn the_serial_flush_and_unknown_requests_are_answered() {
    let file = file();
    let mut h = disk(&file, false);
    let mut ask = |kind: u32, room: u32| {
        let (header, data, status) = (header(&mut h, kind, 0), h.buffer(room.max(1)), h.buffer_with(&[0xee]));
        let mut writable = vec![(data, room), (status, 1)];
        writable.retain(|(_, length)| *length > 0);
        h.request(0, &[header], &writable);
        (h.bytes(status, 1)[0], h.bytes(data, room as usize))
    };
    assert_eq!(ask(GET_ID, 20), (0, b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()));
    assert_eq!(ask(GET_ID, 19).0, 1);
    assert_eq!(ask(4, 0).0, 0);
    assert_eq!(ask(999, 0).0, 2);
}

#[test]
fn the_borders_between_buffers_mean_nothing() {
    let file = file();
    let mut h = disk(&file, false);
    let (header, _) = header(&mut h, IN, 5);
    // The header in three parts; the status behind the data in one buffer that starts in the middle of a sector (2.7.4.1).
    let (first, second) = (h.buffer(100), h.buffer(413));
    let used =
        h.request(0, &[(header, 3), (header + 3, 9), (header + 12, 4)], &[(first, 100), (second, 413)]);
    assert_eq!(used, 513);
    assert_eq!(h.bytes(first, 100), [5; 100]);
    assert_eq!(h.bytes(second, 412), [5; 412]);
    assert_eq!(h.bytes(second + 412, 1), [0]);
}

#[test]
fn the_configuration_says_size_and_segments() {
    let file = file();
    let mut h = disk(&file, false);
    let at = h.parts.device.unwrap();
    assert_eq!(u64::from_le_bytes(h.bar(at)), SECTORS);
    assert_eq!(u32::from_le_bytes(h.bar(at + 12)), 254);
    assert_eq!(u32::from_le_bytes(h.bar(at + 20)), 512);
    assert_eq!(u64::from_le_bytes(h.bar(at + 24)), 0, "nothing behind it");
}

#[test]
fn a_file_that_is_no_disk_is_refused() {
    let mut odd = tempfile::tempfile().unwrap();
    odd.write_all(&[0; 1000]).unwrap();
    assert!(matches!(Block::new(odd, false, ""), Err(BlockError::NotSectors(1000))));
    assert!(matches!(Block::new(file(), false, "longer than twenty bytes"), Err(BlockError::Serial(_))));
    assert!(matches!(Block::new(file(), false, "ä"), Err(BlockError::Serial(_))));
}

#[test]
fn a_file_that_shrank_gives_errors() {
    let file = file();
    let mut h = disk(&file, false);
    file.set_len(512).unwrap();
    assert_eq!(read(&mut h, 2, 512).0, 1);
    assert_eq!(read(&mut h, 0, 512).0, 0);
}

#[test]
fn a_pause_leaves_no_request_half_done_and_resume_finds_new_ones() {
    let file = file();
    let mut h = disk(&file, false);
    h.function.pause();
    let (header, data, status) = (header(&mut h, IN, 7), h.buffer(512), h.buffer(1));
    h.add(0, &[header], &[(data, 512), (status, 1)]);
    h.kick(0);
    assert!(!h.router.wait(1, std::time::Duration::from_millis(50)), "a paused disk does nothing");
    assert_eq!(h.used(0), None);
    h.function.resume();
    assert_eq!(h.wait_used(0).1, 513);
    assert_eq!(h.bytes(data, 512), [7; 512]);
}

#[test]
fn a_request_that_waits_is_served_after_a_move() {
    let file = file();
    let mut h = disk(&file, false);
    assert_eq!(read(&mut h, 1, 512).0, 0);
    h.function.pause();
    let (header, data, status) = (header(&mut h, IN, 9), h.buffer(512), h.buffer(1));
    h.add(0, &[header], &[(data, 512), (status, 1)]);
    h.kick(0);
    let mut h = h.moved(file.try_clone().unwrap()).unwrap();
    assert_eq!(h.used(0), None);
    h.function.resume();
    assert_eq!(h.wait_used(0).1, 513);
    assert_eq!(h.bytes(data, 512), [9; 512]);
    assert_eq!(read(&mut h, 2, 512).2, [2; 512]);
    let other = tempfile::tempfile().unwrap();
    other.set_len(512).unwrap();
    assert_eq!(h.moved(other).err().map(|e| e.field), Some("sectors"), "another disk is refused");
}

#[test]
fn a_driver_that_cannot_flush_gets_durable_writes() {
    // Whether a write is durable cannot be seen from here; that the worker was told to make it so can.
    let file = file();
    let mut h = Harness::new(Block::new(file.try_clone().unwrap(), false, "").unwrap());
    h.bring_up(!FLUSH);
    assert_eq!(write(&mut h, 0, &[1; 512]), 0);
    assert!(h.function.device_for_test().worker.take().unwrap().stop().write_through);
}

#[test]
fn many_requests_in_flight_are_all_answered() {
    let file = file();
    let mut h = disk(&file, false);
    let (header, data, status) = (header(&mut h, IN, 1), h.buffer(512), h.buffer(1));
    for round in 0..20 {
        for _ in 0..80 {
            h.add(0, &[header], &[(data, 512), (status, 1)]);
        }
        h.kick(0);
        for n in 0..80 {
            assert_eq!(h.wait_used(0).1, 513, "round {round}, request {n}, patience {PATIENCE:?}");
        }
    }
}

proptest! {
    /// Against a model: a vector of bytes.
    #[test]
    fn any_sequence_of_requests_agrees_with_a_model(
        requests in prop::collection::vec((any::<bool>(), 0..SECTORS + 4, 0u32..6, any::<u8>()), 1..20)
    ) {
        let file = file();
        let mut model = vec![0; (SECTORS * 512) as usize];
        file.read_exact_at(&mut model, 0).unwrap();
        let mut h = disk(&file, false);
        for (is_write, sector, sectors, fill) in requests {
            let length = sectors * 512;
            let fits = sector + u64::from(sectors) <= SECTORS;
            let range = (sector * 512) as usize..(sector * 512) as usize + length as usize;
            if is_write && length > 0 {
                prop_assert_eq!(write(&mut h, sector, &vec![fill; length as usize]) == 0, fits);
                if fits {
                    model[range].fill(fill);
                }
            } else if length > 0 {
                let (status, _, data) = read(&mut h, sector, length);
                prop_assert_eq!(status == 0, fits);
                if fits {
                    prop_assert_eq!(&data, &model[range]);
                }
            }
        }
        let mut all = vec![0; model.len()];
        file.read_exact_at(&mut all, 0).unwrap();
        prop_assert_eq!(all, model);
    }
}
