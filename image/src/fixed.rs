//! What would differ from build to build if it were not fixed here: times, identifiers, owners.
//!
//! All images of one layout carry the same identifiers: a host is told apart by what it makes at first boot, not by these.

use uuid::{Uuid, uuid};

/// The time stamped on every file and file system, in seconds since 1970: 2026-01-01 00:00:00 UTC.
pub const TIME: u64 = 1_767_225_600;
/// The same instant as FAT stores it: year, month, day.
pub const DATE: (u16, u16, u16) = (2026, 1, 1);

/// GUID of the disk.
pub const DISK: Uuid = uuid!("6b65656c-736f-4e00-8000-000000000001");
/// GUID of the ESP.
pub const ESP: Uuid = uuid!("6b65656c-736f-4e00-8000-000000000002");
/// GUID of the state partition.
pub const STATE_PARTITION: Uuid = uuid!("6b65656c-736f-4e00-8000-000000000003");
/// UUID of the file system on the state partition.
pub const STATE_FILE_SYSTEM: Uuid = uuid!("6b65656c-736f-4e00-8000-000000000004");
/// Seed of the directory hashes of that file system.
pub const STATE_HASH_SEED: Uuid = uuid!("6b65656c-736f-4e00-8000-000000000005");
/// Volume identifier of the ESP's file system.
pub const ESP_VOLUME: u32 = 0x6b65_656c;
/// Label of the ESP's file system, padded as FAT wants it.
pub const ESP_LABEL: [u8; 11] = *b"KEELSON-ESP";
/// Label of the state partition and of the file system on it: init finds it by this.
pub const STATE_LABEL: &str = "KEELSON-STATE";
