//! How large the image is, and what takes its room.

use anyhow::{Context, Result, ensure};

use super::figures::Figures;
use crate::artefacts;

/// The UKI's size, and each part's as the build of the image wrote them down.
pub(super) fn sizes(figures: &mut Figures) -> Result<()> {
    let uki = std::fs::metadata(artefacts::image("keelson.efi")?)?.len();
    let mib = uki as f64 / f64::from(1 << 20);
    figures.add("image.size", mib, "MiB");
    let written = std::fs::read_to_string(artefacts::image("sizes.txt")?)?;
    let mut sum = 0.0;
    for (name, size) in parts(&written)? {
        sum += size;
        figures.add(name, size, "MiB");
    }
    ensure!((sum - mib).abs() < 0.5, "the parts in sizes.txt sum to {sum:.2} MiB, the UKI has {mib:.2} MiB");
    Ok(())
}

fn parts(written: &str) -> Result<Vec<(&str, f64)>> {
    let lines = written.lines().filter(|line| line.starts_with("image.part."));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let figure = words.next().zip(words.next()).and_then(|(n, v)| Some((n, v.parse().ok()?)));
            figure.with_context(|| format!("sizes.txt: `{line}` is no figure"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_and_the_total_is_not_one() {
        let text = "image.size 3.00 MiB\nimage.part.kernel 2.50 MiB\nimage.part.rest 0.50 MiB\n";
        assert_eq!(parts(text).unwrap(), [("image.part.kernel", 2.5), ("image.part.rest", 0.5)]);
        assert!(parts("image.part.kernel much MiB").is_err());
    }
}
