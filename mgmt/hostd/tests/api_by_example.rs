//! The examples of docs/api.md: every block ```` ```sh ```` that begins with `curl` runs against a hostd that stands alone, and succeeds, or is
//! answered as the text after it says (`answers 400`). Blocks ```` ```sh host ```` need a whole host and are run with one by the system tests.

mod host;

use std::process::Command;

use host::Host;

/// One example.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    line: usize,
    command: String,
    /// The status that the text promises; any success when it promises none.
    status: Option<u16>,
}

fn examples(text: &str) -> Vec<Example> {
    let mut examples = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line != "```sh" {
            continue;
        }
        let command: Vec<&str> =
            lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
        let after = lines.clone().map(|(_, line)| line).find(|line| !line.is_empty()).unwrap_or_default();
        let status = after
            .strip_prefix("answers ")
            .and_then(|rest| rest.get(..3))
            .and_then(|digits| digits.parse().ok());
        if command.first().is_some_and(|first| first.starts_with("curl ")) {
            examples.push(Example { line: number + 1, command: command.join("\n"), status });
        }
    }
    examples
}

#[test]
fn every_example_does_what_the_page_says() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md")).unwrap();
    let examples = examples(&page);
    assert!(examples.len() >= 6, "the page has lost its examples: {examples:?}");
    let (host, token) = Host::with_session();
    for example in examples {
        let command = example.command.replacen("curl ", "curl --max-time 60 -w '\\n%{http_code}' ", 1);
        let output = Command::new("sh")
            .args(["-ec", &command])
            .env("API", format!("https://{}/api/v1", host.address()))
            .env("TOKEN", &token)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let status: u16 = said.lines().last().and_then(|code| code.parse().ok()).unwrap_or(0);
        let right = example.status.map_or((200..300).contains(&status), |promised| promised == status);
        assert!(
            output.status.success() && right,
            "docs/api.md line {}: {}\n{said}{}",
            example.line,
            example.command,
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn blocks_are_told_apart() {
    let page = "```sh\ncurl a \\\n  b\n```\n\nanswers 404 with\n\n```sh host\ncurl c\n```\n```json\n{}\n```\n```sh\nls\n```\n```sh\ncurl d\n```\n";
    let found = examples(page);
    assert_eq!(
        found,
        [
            Example { line: 1, command: "curl a \\\n  b".into(), status: Some(404) },
            Example { line: 17, command: "curl d".into(), status: None }
        ]
    );
}
