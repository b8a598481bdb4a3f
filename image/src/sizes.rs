//! What takes how much room in the UKI, one `name value unit` line per part, as the benches print theirs.

use std::fmt::Write as _;

/// The most that a UKI may take, in bytes.
pub const LIMIT: u64 = 96 << 20;

/// Parts and their bytes.
#[derive(Debug, Default, Clone)]
pub struct Sizes {
    parts: Vec<(String, u64)>,
    total: u64,
}

impl Sizes {
    /// Sizes of a UKI of `total` bytes.
    pub fn new(total: u64) -> Self {
        Self { parts: Vec::new(), total }
    }

    /// Counts `bytes` as `name`.
    pub fn add(&mut self, name: impl Into<String>, bytes: u64) {
        self.parts.push((name.into(), bytes));
    }

    /// Bytes of the whole.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The lines, the largest part first, what no part accounts for at the end.
    pub fn lines(&self) -> String {
        let mut parts = self.parts.clone();
        parts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let known: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
        parts.push(("rest".to_owned(), self.total.saturating_sub(known)));
        let mut text = format!("image.size {:.2} MiB\n", mib(self.total));
        for (name, bytes) in parts {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "image.part.{name} {:.2} MiB", mib(bytes));
        }
        text
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up() {
        let mut sizes = Sizes::new(10 << 20);
        sizes.add("small", 1 << 20);
        sizes.add("large", 6 << 20);
        let expected = "image.size 10.00 MiB\nimage.part.large 6.00 MiB\nimage.part.small 1.00 MiB\nimage.part.rest 3.00 MiB\n";
        assert_eq!(sizes.lines(), expected);
    }
}
