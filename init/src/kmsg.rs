//! Records of the kernel's log, as /dev/kmsg gives them (Documentation/ABI/testing/dev-kmsg).

use std::time::Duration;

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// Syslog priority.
    pub(crate) priority: u8,
    /// Since the kernel started.
    pub(crate) at: Duration,
    /// Its first line; the lines after it are a dictionary.
    pub(crate) text: &'a str,
}

/// Reads `prefix,sequence,microseconds,flags;text`. Records that came from programs (facility above 0) are `None`: they are in
/// the log ring already.
pub(crate) fn parse(record: &str) -> Option<Record<'_>> {
    let (head, text) = record.split_once(';')?;
    let mut head = head.split(',');
    let prefix: u32 = head.next()?.parse().ok()?;
    let micros: u64 = head.nth(1)?.parse().ok()?;
    if prefix > 7 {
        return None;
    }
    let text = text.lines().next()?;
    Some(Record { priority: u8::try_from(prefix).ok()?, at: Duration::from_micros(micros), text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_is_read_and_a_programs_own_is_not() {
        let record = parse("4,812,1234567,-;ata1: link is slow\n SUBSYSTEM=scsi\n").unwrap();
        assert_eq!(
            record,
            Record { priority: 4, at: Duration::from_micros(1_234_567), text: "ata1: link is slow" }
        );
        assert_eq!(parse("12,813,1,-;init: hello"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}") {
            parse(&text);
        }
    }
}
