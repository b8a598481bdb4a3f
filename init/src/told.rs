//! What the host was told at power-on: words of the kernel command line and of `keelson.conf`, joined.

use keelson_init_control::{HostWords, WordError, parse_cmdline, parse_file};

/// Words of a light host come as arguments, with the prefix or without.
pub(crate) fn arguments(words: &[String]) -> String {
    let prefixed = words.iter().map(|word| {
        let word = word.replace('"', "");
        let word = if word.starts_with("keelson.") { word } else { format!("keelson.{word}") };
        format!("\"{word}\"")
    });
    prefixed.collect::<Vec<_>>().join(" ")
}

/// Joins both sources; the command line wins.
pub(crate) fn join(cmdline: &str, file: Option<&str>) -> (HostWords, Vec<WordError>) {
    let (words, mut errors) = parse_cmdline(cmdline);
    let Some(file) = file else { return (words, errors) };
    let (from_file, more) = parse_file(file);
    errors.extend(more);
    (words.or(from_file), errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_words_with_or_without_the_prefix() {
        let line = arguments(&["address=dhcp".into(), "keelson.hostname=h1".into(), "nonsense".into()]);
        let (words, errors) = join(&line, Some("vlan = 20\nhostname = h2\n"));
        assert_eq!((words.hostname.as_deref(), words.vlan), (Some("h1"), Some(20)));
        assert_eq!(errors.iter().map(|e| e.word.as_str()).collect::<Vec<_>>(), ["nonsense"]);
    }
}
