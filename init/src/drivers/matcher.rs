//! Whether an alias pattern of a driver (fnmatch(3) with `*`, `?` and `[…]`) covers a name that a device or the kernel asks for.
//! `-` and `_` are the same, as for all of modprobe's names.

/// Whether all of `name` is covered by `pattern`. A malformed pattern covers nothing.
pub(crate) fn covers(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.as_bytes(), name.as_bytes());
    // Where to go on when what follows the last star does not fit: the pattern after it, and one more byte of the name swallowed.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match step(pattern, name) {
            Step::Done => return true,
            Step::Star(rest) => {
                pattern = rest;
                retry = Some((rest, name));
                continue;
            }
            Step::On(rest, tail) => {
                (pattern, name) = (rest, tail);
                continue;
            }
            Step::Fails => {}
        }
        let Some((rest, from)) = retry else { return false };
        let Some((_, tail)) = from.split_first() else { return false };
        (pattern, name, retry) = (rest, tail, Some((rest, tail)));
    }
}

enum Step<'p, 'n> {
    Done,
    Star(&'p [u8]),
    On(&'p [u8], &'n [u8]),
    Fails,
}

fn step<'p, 'n>(pattern: &'p [u8], name: &'n [u8]) -> Step<'p, 'n> {
    let Some((first, rest)) = pattern.split_first() else {
        return if name.is_empty() { Step::Done } else { Step::Fails };
    };
    if *first == b'*' {
        return Step::Star(rest);
    }
    let Some((byte, tail)) = name.split_first() else { return Step::Fails };
    match first {
        b'?' => Step::On(rest, tail),
        b'[' => match set(rest, *byte) {
            Some((true, rest)) => Step::On(rest, tail),
            _ => Step::Fails,
        },
        _ if same(*first, *byte) => Step::On(rest, tail),
        _ => Step::Fails,
    }
}

fn same(a: u8, b: u8) -> bool {
    a == b || matches!((a, b), (b'-', b'_') | (b'_', b'-'))
}

/// A set, from behind its `[`: whether it has `byte`, and the pattern behind its `]`.
fn set(pattern: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let (negated, mut rest) = match pattern.split_first() {
        Some((b'!' | b'^', rest)) => (true, rest),
        _ => (false, pattern),
    };
    let (mut found, mut first) = (false, true);
    loop {
        let (low, tail) = rest.split_first()?;
        if *low == b']' && !first {
            return Some((found != negated, tail));
        }
        first = false;
        match tail {
            [b'-', high, tail @ ..] if *high != b']' => {
                found |= (*low..=*high).contains(&byte);
                rest = tail;
            }
            _ => {
                found |= *low == byte;
                rest = tail;
            }
        }
    }
}

/// The part of a pattern before its first wildcard.
pub(crate) fn literal(pattern: &str) -> &str {
    pattern.split(['*', '?', '[']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_of_real_drivers() {
        for (pattern, name, covered) in [
            (
                "pci:v00001AF4d00001041sv*sd*bc*sc*i*",
                "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00",
                true,
            ),
            (
                "pci:v00001AF4d00001042sv*sd*bc*sc*i*",
                "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00",
                false,
            ),
            ("pci:v*d*sv*sd*bc01sc06i01*", "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", true),
            ("virtio:d00000002v*", "virtio:d00000002v00001AF4", true),
            (
                "usb:v0BDAp8152d*dc*dsc*dp*icFFisc*ip*in*",
                "usb:v0BDAp8152d2000dc00dsc00dp00icFFiscFFip00in00",
                true,
            ),
            ("usb:v1D6Bp000[1-3]d*", "usb:v1D6Bp0002d0612", true),
            ("usb:v1D6Bp000[!1-3]d*", "usb:v1D6Bp0002d0612", false),
            ("acpi*:PNP0501:*", "acpi:PNP0501:PNP0500:", true),
            ("fs-nfs4", "fs_nfs4", true),
            ("*", "", true),
            ("", "", true),
            ("a[", "a", false),
            (
                "x86cpu:type:x86,ven*fam*mod*:feature:*0094*",
                "x86cpu:type:x86,ven0002fam0017mod0001:feature:,0001,0094,",
                true,
            ),
        ] {
            assert_eq!(covers(pattern, name), covered, "{pattern} {name}");
        }
    }

    /// The definition, slow and plain, for patterns of letters and stars.
    fn plainly(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                plainly(rest, name) || (!name.is_empty() && plainly(pattern, &name[1..]))
            }
            (Some((b'?', rest)), Some((_, tail))) => plainly(rest, tail),
            (Some((a, rest)), Some((b, tail))) => a == b && plainly(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_definition(pattern in "[ab*?]{0,10}", name in "[ab]{0,12}") {
            prop_assert_eq!(covers(&pattern, &name), plainly(pattern.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn no_pattern_makes_it_panic(pattern in "\\PC{0,40}", name in "\\PC{0,40}") {
            covers(&pattern, &name);
            literal(&pattern);
        }
    }
}
