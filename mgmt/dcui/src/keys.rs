//! Which key do these bytes mean? A pure decoder of what terminals and the Linux console send.
//!
//! A bare Esc and the beginning of an escape sequence look alike, so the caller reports when nothing has come for [`ESCAPE_PAUSE`].

use std::time::Duration;

/// How long a bare Esc is held back. Long enough to type `Esc 2` by hand on a terminal without function keys.
pub(crate) const ESCAPE_PAUSE: Duration = Duration::from_millis(500);

/// The longest sequence that is waited for.
const MAX_SEQUENCE: usize = 24;

const ESC: u8 = 0x1b;

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Char(char),
    Ctrl(char),
    F(u8),
    Enter,
    Esc,
    Tab,
    BackTab,
    Backspace,
    Delete,
    Up,
    Down,
    Left,
    Right,
    Home,
    End,
    PageUp,
    PageDown,
}

/// What a run of bytes is so far.
enum Reading {
    /// Not whole yet.
    More,
    /// This key.
    Key(Key),
    /// Whole, but no key that the console knows.
    Nothing,
    /// The bytes before the last are done with (perhaps this key); the last one begins anew.
    Again(Option<Key>),
}

/// Turns bytes into keys.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    held: Vec<u8>,
    after_return: bool,
}

impl Decoder {
    /// Takes one byte; keys that it completes are added to `keys`.
    pub(crate) fn feed(&mut self, byte: u8, keys: &mut Vec<Key>) {
        // Some programs send CR LF or CR NUL for the one key.
        let echo_of_return = self.after_return && matches!(byte, b'\n' | 0);
        self.after_return = byte == b'\r';
        if echo_of_return {
            return;
        }
        self.held.push(byte);
        match read(&self.held) {
            Reading::More if self.held.len() < MAX_SEQUENCE => {}
            Reading::More | Reading::Nothing => self.held.clear(),
            Reading::Key(key) => {
                keys.push(key);
                self.held.clear();
            }
            Reading::Again(key) => {
                keys.extend(key);
                self.held.clear();
                self.after_return = false;
                self.feed(byte, keys);
            }
        }
    }

    /// Nothing came for [`ESCAPE_PAUSE`]: what is held is whole or will never be.
    pub(crate) fn pause(&mut self, keys: &mut Vec<Key>) {
        if self.held == [ESC] {
            keys.push(Key::Esc);
        }
        self.held.clear();
    }

    /// Whether [`Decoder::pause`] would change something.
    pub(crate) fn waits(&self) -> bool {
        !self.held.is_empty()
    }
}

fn read(bytes: &[u8]) -> Reading {
    match bytes {
        [] | [ESC] => Reading::More,
        [ESC, rest @ ..] => escape(rest),
        [byte] if *byte < 0x80 => plain(*byte),
        _ => utf8(bytes),
    }
}

fn plain(byte: u8) -> Reading {
    Reading::Key(match byte {
        b'\r' | b'\n' => Key::Enter,
        b'\t' => Key::Tab,
        0x08 | 0x7f => Key::Backspace,
        0x01..=0x1a => Key::Ctrl((byte - 1 + b'a') as char),
        0x20..=0x7e => Key::Char(byte as char),
        _ => return Reading::Nothing,
    })
}

fn utf8(bytes: &[u8]) -> Reading {
    match std::str::from_utf8(bytes) {
        Ok(text) => text
            .chars()
            .next()
            .filter(|c| !c.is_control())
            .map_or(Reading::Nothing, |c| Reading::Key(Key::Char(c))),
        Err(e) if e.error_len().is_none() => Reading::More,
        Err(_) if bytes.len() > 1 => Reading::Again(None),
        Err(_) => Reading::Nothing,
    }
}

/// What follows an Esc.
fn escape(rest: &[u8]) -> Reading {
    match rest {
        [b'['] | [b'O'] | [b'[', b'['] => Reading::More,
        // The Linux console's first five function keys.
        [b'[', b'[', last] => match last {
            b'A'..=b'E' => Reading::Key(Key::F(last - b'A' + 1)),
            0x20..=0x7e => Reading::Nothing,
            _ => Reading::Again(None),
        },
        [b'[', parameters @ .., last] => control_sequence(parameters, *last),
        [b'O', last] => match last {
            b'P'..=b'S' => Reading::Key(Key::F(last - b'P' + 1)),
            b'M' => Reading::Key(Key::Enter),
            0x20..=0x7e => cursor(*last).map_or(Reading::Nothing, Reading::Key),
            _ => Reading::Again(None),
        },
        // For terminals without function keys.
        [b'2'] => Reading::Key(Key::F(2)),
        [b'1' | b'!'] => Reading::Key(Key::F(11)),
        [b'0' | b'@'] => Reading::Key(Key::F(12)),
        // Esc, and then another key.
        _ => Reading::Again(Some(Key::Esc)),
    }
}

/// A control sequence (ECMA-48): parameters, and a last byte that says which.
fn control_sequence(parameters: &[u8], last: u8) -> Reading {
    match last {
        0x20..=0x3f => Reading::More,
        b'~' => {
            let number: String =
                parameters.iter().take_while(|b| b.is_ascii_digit()).map(|b| *b as char).collect();
            let key = match number.parse().unwrap_or(0u16) {
                1 | 7 => Key::Home,
                4 | 8 => Key::End,
                3 => Key::Delete,
                5 => Key::PageUp,
                6 => Key::PageDown,
                n @ 11..=15 => Key::F(u8::try_from(n - 10).unwrap_or_default()),
                n @ 17..=21 => Key::F(u8::try_from(n - 11).unwrap_or_default()),
                n @ 23..=24 => Key::F(u8::try_from(n - 12).unwrap_or_default()),
                _ => return Reading::Nothing,
            };
            Reading::Key(key)
        }
        b'P'..=b'S' => Reading::Key(Key::F(last - b'P' + 1)),
        b'Z' => Reading::Key(Key::BackTab),
        0x40..=0x7e => cursor(last).map_or(Reading::Nothing, Reading::Key),
        _ => Reading::Again(None),
    }
}

fn cursor(last: u8) -> Option<Key> {
    Some(match last {
        b'A' => Key::Up,
        b'B' => Key::Down,
        b'C' => Key::Right,
        b'D' => Key::Left,
        b'H' => Key::Home,
        b'F' => Key::End,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let (mut decoder, mut keys) = (Decoder::default(), Vec::new());
        for byte in bytes {
            decoder.feed(*byte, &mut keys);
        }
        decoder.pause(&mut keys);
        assert!(!decoder.waits());
        keys
    }

    #[test]
    fn function_keys_of_all_terminals() {
        for f2 in ["\x1b[[B", "\x1bOQ", "\x1b[12~", "\x1b2", "\x1b[1;2Q"] {
            assert_eq!(keys(f2.as_bytes()), [Key::F(2)], "{f2:?}");
        }
        for f12 in ["\x1b[24~", "\x1b0", "\x1b@", "\x1b[24;5~"] {
            assert_eq!(keys(f12.as_bytes()), [Key::F(12)], "{f12:?}");
        }
        for f11 in ["\x1b[23~", "\x1b1", "\x1b!"] {
            assert_eq!(keys(f11.as_bytes()), [Key::F(11)], "{f11:?}");
        }
        assert_eq!(keys(b"\x1b[17~\x1b[21~\x1b[15~\x1b[[E"), [Key::F(6), Key::F(10), Key::F(5), Key::F(5)]);
    }

    #[test]
    fn cursor_keys_and_editing() {
        assert_eq!(keys(b"\x1b[A\x1bOB\x1b[C\x1b[D"), [Key::Up, Key::Down, Key::Right, Key::Left]);
        assert_eq!(
            keys(b"\x1b[1~\x1b[F\x1b[5~\x1b[6~\x1b[3~"),
            [Key::Home, Key::End, Key::PageUp, Key::PageDown, Key::Delete]
        );
        assert_eq!(
            keys(b"\x7f\x08\t\x1b[Z\x0c"),
            [Key::Backspace, Key::Backspace, Key::Tab, Key::BackTab, Key::Ctrl('l')]
        );
        assert_eq!(
            keys("aé€😀".as_bytes()),
            [Key::Char('a'), Key::Char('é'), Key::Char('€'), Key::Char('😀')]
        );
    }

    #[test]
    fn one_return_is_one_enter() {
        assert_eq!(keys(b"\r\n"), [Key::Enter]);
        assert_eq!(keys(b"\r\0"), [Key::Enter]);
        assert_eq!(keys(b"\r\r\n\n"), [Key::Enter, Key::Enter, Key::Enter]);
    }

    #[test]
    fn a_bare_escape_is_known_by_the_pause() {
        assert_eq!(keys(b"\x1b"), [Key::Esc]);
        let (mut decoder, mut got) = (Decoder::default(), Vec::new());
        decoder.feed(0x1b, &mut got);
        assert!(decoder.waits() && got.is_empty());
        decoder.pause(&mut got);
        decoder.feed(b'2', &mut got);
        assert_eq!(got, [Key::Esc, Key::Char('2')]);
        assert_eq!(keys(b"\x1b\x1b\x1b[A"), [Key::Esc, Key::Esc, Key::Up]);
        assert_eq!(keys(b"\x1by"), [Key::Esc, Key::Char('y')]);
        assert_eq!(keys(b"\x1b\r"), [Key::Esc, Key::Enter]);
    }

    #[test]
    fn what_is_cut_or_unknown_is_dropped_and_the_next_key_counts() {
        assert_eq!(keys(b"\x1b["), []);
        assert_eq!(keys(b"\x1b[99~x"), [Key::Char('x')]);
        assert_eq!(keys(b"\x1b[3\x1b[A"), [Key::Up]);
        assert_eq!(keys(b"\x1b[?1;2cx"), [Key::Char('x')]);
        assert_eq!(keys(b"\xff\xc3x"), [Key::Char('x')]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_bounded(bytes: Vec<u8>) {
            let (mut decoder, mut got) = (Decoder::default(), Vec::new());
            for byte in &bytes {
                decoder.feed(*byte, &mut got);
                prop_assert!(decoder.held.len() < MAX_SEQUENCE);
            }
            decoder.pause(&mut got);
            prop_assert!(got.len() <= bytes.len());
            got.clear();
            // Whatever came before, after a pause a key is a key.
            for byte in b"\x1b[[Bq" {
                decoder.feed(*byte, &mut got);
            }
            prop_assert_eq!(&got, &vec![Key::F(2), Key::Char('q')]);
        }

        #[test]
        fn printable_text_comes_through(text in "[ -~¡-ÿ]*") {
            let expected: Vec<Key> = text.chars().filter(|c| !c.is_control()).map(Key::Char).collect();
            prop_assert_eq!(keys(text.as_bytes()), expected);
        }
    }
}
