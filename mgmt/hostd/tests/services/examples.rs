//! The examples of docs/api.md that need a whole host, in the page's order.

use std::process::Command;

use serde_json::json;

use crate::host::{Whole, bzimage};

#[test]
fn the_examples_of_the_page_do_what_it_says() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let password = host.send("PUT", "/account/password", &json!({ "new": "a fine password" }));
    assert_eq!(password.status, 204, "{}", String::from_utf8_lossy(&password.body));
    let session =
        host.send("POST", "/sessions", &json!({ "username": "root", "password": "a fine password" }));
    assert_eq!(session.status, 201, "{}", String::from_utf8_lossy(&session.body));
    let token = session.json()["token"].as_str().unwrap().to_owned();

    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md")).unwrap();
    let blocks: Vec<&str> =
        page.split("```sh host\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 14, "the page has lost its examples");
    // Any answer that is an error ends the script with its line; `--fail-with-body` shows what was said.
    let script = blocks.concat().replace("curl ", "curl --fail-with-body --max-time 60 ");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vmlinuz"), bzimage()).unwrap();
    std::fs::write(dir.path().join("initrd"), b"an initramfs").unwrap();
    let script = format!("set -eux\n{script}\ntest -n \"$VM\"\n");
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(dir.path())
        .env("API", format!("https://{}/api/v1", host.address()))
        .env("TOKEN", token)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for expected in [
        "\"vmotion_ready\":true",
        "web1 is powered on",
        "Hello from the guest",
        "\"hostname\":\"host1\"",
        "\"cause\":\"power_on\"",
    ] {
        assert!(said.contains(expected), "{expected} is not in:\n{said}");
    }
}
