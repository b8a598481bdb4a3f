//! What an owner file holds: a small TOML document that ends with its own SHA-256.
//!
//! The checksum is what tells a damaged record from a sound one: a record that cannot be trusted to the last byte must never be
//! taken for `off`.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::random::to_hex;

/// The schema number of the records that this version writes.
const SCHEMA: u32 = 1;
/// The longest record, in bytes.
pub const MAX_RECORD: u64 = 4096;
/// The longest note, in characters; a longer one is cut when it is written.
pub const MAX_NOTE: usize = 400;
/// The longest host name and boot id, in characters.
const MAX_WORD: usize = 128;
/// How the last line begins.
const CHECKSUM: &str = "sha256 = \"";

/// One owner of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The host's id.
    pub host_id: Uuid,
    /// The host's name when it took the epoch: for people, it decides nothing.
    pub hostname: String,
    /// The host's boot.
    pub boot_id: String,
    /// What the VM is from this epoch on.
    pub state: State,
    /// Drawn at random for each attempt: it tells two records of one host apart.
    pub attempt: Uuid,
    /// When the attempt began, by that host's clock: for people, it decides nothing.
    pub when: jiff::Timestamp,
    /// Why the epoch was taken.
    pub cause: Cause,
    /// The cause in a sentence: how a run ended, what an operator claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What a VM is, as its register says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The record's host runs it, or may.
    Running,
    /// It is stopped and its memory lies in its directory.
    Suspended,
    /// Nobody runs it.
    Off,
}

/// Why an epoch was taken. There are no other reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It was powered on, or resumed.
    PowerOn,
    /// It was powered off, or its run ended by itself.
    PowerOff,
    /// It was suspended.
    Suspend,
    /// It was moved here.
    Move,
    /// A move's target could not start it.
    GiveBack,
    /// An operator claimed that the owner is off.
    Forced,
}

/// Why a record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Damage {
    /// A link, a directory or a device has the name.
    #[error("it is no regular file")]
    NotAFile,
    /// It is longer than any record.
    #[error("it is longer than {MAX_RECORD} bytes")]
    TooLong,
    /// It was cut or changed.
    #[error("its checksum does not fit its content")]
    Checksum,
    /// Its checksum fits, its content does not.
    #[error("it is not understood: {0}")]
    Form(String),
    /// It was written by a newer version.
    #[error("it has the schema {found}; this version knows {SCHEMA}")]
    Newer {
        /// Its schema number.
        found: u64,
    },
}

impl Record {
    /// The record with names and note cut to what is written, so that what is read back can be compared with it.
    pub fn fitted(self) -> Self {
        let cut = |text: &str, most: usize| -> String {
            text.chars().filter(|c| !c.is_control()).take(most).collect()
        };
        Self {
            hostname: cut(&self.hostname, MAX_WORD),
            boot_id: cut(&self.boot_id, MAX_WORD),
            note: self.note.as_deref().map(|note| cut(note, MAX_NOTE)),
            ..self
        }
    }

    /// The record as it is written. One that is [fitted](Self::fitted) is never longer than [`MAX_RECORD`].
    pub fn encode(&self) -> Vec<u8> {
        // Strings, enums, a time: nothing in it that TOML cannot say.
        let body = format!("schema = {SCHEMA}\n{}", toml::to_string(self).unwrap_or_default());
        let sum = to_hex(&Sha256::digest(&body));
        format!("{body}{CHECKSUM}{sum}\"\n").into_bytes()
    }

    /// Reads a record. Whatever the bytes are, the answer is the record that was written or why there is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        if bytes.len() as u64 > MAX_RECORD {
            return Err(Damage::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Damage::Checksum)?;
        let (body, line) =
            text.rfind(CHECKSUM).and_then(|at| text.split_at_checked(at)).ok_or(Damage::Checksum)?;
        if line != format!("{CHECKSUM}{}\"\n", to_hex(&Sha256::digest(body))) {
            return Err(Damage::Checksum);
        }
        let form = |e: toml::de::Error| Damage::Form(e.message().replace('\n', " "));
        let mut table: toml::Table = body.parse().map_err(form)?;
        // The number first: a newer record's new fields must not look like mistakes.
        match table
            .remove("schema")
            .as_ref()
            .and_then(toml::Value::as_integer)
            .and_then(|n| u64::try_from(n).ok())
        {
            Some(found) if found == u64::from(SCHEMA) => {}
            Some(found) if found > u64::from(SCHEMA) => return Err(Damage::Newer { found }),
            _ => return Err(Damage::Form("it has no schema number that was ever written".into())),
        }
        table.try_into().map_err(form)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::ownership) fn record(host: u128, state: State, attempt: u128) -> Record {
        Record {
            host_id: Uuid::from_u128(host),
            hostname: format!("host{host}"),
            boot_id: "b".into(),
            state,
            attempt: Uuid::from_u128(attempt),
            when: jiff::Timestamp::UNIX_EPOCH,
            cause: Cause::PowerOn,
            note: None,
        }
    }

    fn sealed(body: &str) -> Vec<u8> {
        format!("{body}{CHECKSUM}{}\"\n", to_hex(&Sha256::digest(body))).into_bytes()
    }

    #[test]
    fn a_newer_record_is_told_from_a_damaged_one() {
        assert_eq!(Record::decode(&sealed("schema = 7\nnew = 1\n")), Err(Damage::Newer { found: 7 }));
        for odd in [
            "",
            "schema = 1\n",
            "schema = -1\n",
            "state = \"off\"\n",
            "schema = 1\nstate = \"off\"\n",
            "not toml\n",
        ] {
            assert!(matches!(Record::decode(&sealed(odd)), Err(Damage::Form(_))), "{odd}");
        }
        assert_eq!(Record::decode(b""), Err(Damage::Checksum));
        assert_eq!(Record::decode(&vec![b'a'; 5000]), Err(Damage::TooLong));
    }

    #[test]
    fn the_longest_record_fits() {
        let long = "\u{1F980}".repeat(1000);
        let quotes = "\"'\\".repeat(1000);
        for text in [long, quotes] {
            let note = Some(text.clone());
            let record =
                Record { hostname: text.clone(), boot_id: text, note, ..record(1, State::Off, 1) }.fitted();
            let bytes = record.encode();
            assert!(bytes.len() as u64 <= MAX_RECORD, "{}", bytes.len());
            assert_eq!(Record::decode(&bytes), Ok(record));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            ids in any::<(u128, u128)>(), hostname in "[a-z0-9.-]{0,63}", boot_id in "[a-z0-9-]{0,40}",
            state in prop::sample::select(vec![State::Running, State::Suspended, State::Off]),
            cause in prop::sample::select(vec![Cause::PowerOn, Cause::PowerOff, Cause::Suspend, Cause::Move, Cause::GiveBack, Cause::Forced]),
            seconds in 0i64..4_000_000_000, note in prop::option::of("[^\\pC]{0,400}"),
        ) {
            let written = Record {
                host_id: Uuid::from_u128(ids.0), hostname, boot_id, state, attempt: Uuid::from_u128(ids.1),
                when: jiff::Timestamp::from_second(seconds).unwrap(), cause, note,
            };
            prop_assert_eq!(Record::decode(&written.encode()), Ok(written));
        }

        #[test]
        fn one_changed_byte_or_a_cut_is_noticed(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
            let mut bytes = record(1, State::Off, 2).encode();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            prop_assert!(Record::decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), body in "\\PC{0,200}") {
            let _ = Record::decode(&bytes);
            let _ = Record::decode(&sealed(&body));
        }
    }
}
