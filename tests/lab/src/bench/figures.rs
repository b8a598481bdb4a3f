//! Figures: how they are printed, and what they aim at.

use anyhow::{Context, Result};

/// What a figure should not exceed, in its own unit.
const AIMS: [(&str, f64); 5] = [
    ("image.size", 96.0),
    ("host.memory", 150.0),
    ("boot.init_to_api", 2000.0),
    ("vmm.start", 8.0),
    ("vmm.private", 5.0),
];

/// The figures of one run, each printed as soon as it is known.
#[derive(Debug, Default)]
pub(super) struct Figures(Vec<(String, f64)>);

impl Figures {
    /// Prints a figure on standard output.
    pub(super) fn add(&mut self, name: &str, value: f64, unit: &str) {
        println!("{name} {value:.2} {unit}");
        self.0.push((name.into(), value));
    }

    /// Says on standard error how the figures stand to their aims.
    pub(super) fn show_aims(&self) {
        eprintln!("aims:");
        for (name, value) in &self.0 {
            if let Some((_, aim)) = AIMS.iter().find(|(aimed, _)| aimed == name) {
                let verdict = if value <= aim { "met" } else { "MISSED" };
                eprintln!("  {name:20} {value:9.2}, aim {aim:6.0}: {verdict}");
            }
        }
    }
}

/// The middle of the values; of an even number, the upper of the two. An error where there is none.
pub(super) fn median(values: &[f64]) -> Result<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().context("nothing was measured")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[9.0, 1.0, 5.0]).unwrap(), 5.0);
        assert_eq!(median(&[2.0, 1.0]).unwrap(), 2.0);
        assert!(median(&[]).is_err());
    }
}
