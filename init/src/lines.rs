//! Bytes from a pipe become lines of bounded length.

use crate::ring::LINE_MAX;

/// What is left of a line that has not ended yet.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes bytes, and hands each line that is complete to `each`. A line that is too long comes in parts.
    pub(crate) fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let (part, ends) = match part.strip_suffix(b"\n") {
                Some(line) => (line, true),
                None => (part, false),
            };
            for piece in part.chunks(LINE_MAX) {
                if self.rest.len() + piece.len() > LINE_MAX {
                    self.end(&mut each);
                }
                self.rest.extend_from_slice(piece);
            }
            if ends {
                self.end(&mut each);
            }
        }
    }

    /// Hands over what is left, at the end of the pipe.
    pub(crate) fn end(&mut self, mut each: impl FnMut(&str)) {
        let line = std::mem::take(&mut self.rest);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if !text.is_empty() {
            each(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_joined_over_reads() {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        for part in ["<3>one\n<6>t", "wo", "\n\nthree"] {
            lines.take(part.as_bytes(), |l| seen.push(l.to_owned()));
        }
        lines.end(|l| seen.push(l.to_owned()));
        assert_eq!(seen, ["<3>one", "<6>two", "three"]);
    }

    proptest! {
        #[test]
        fn any_bytes_make_bounded_lines(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..8)) {
            let mut lines = Lines::default();
            for part in parts {
                // A byte that is no UTF-8 becomes a character of three.
                lines.take(&part, |l| assert!(l.len() <= 3 * LINE_MAX));
                prop_assert!(lines.rest.len() <= LINE_MAX);
            }
        }
    }
}
