//! `/run/keelson/resolv.conf`: the name servers in use.

use std::net::Ipv4Addr;
use std::path::Path;

use crate::store;

/// The file's text.
pub(crate) fn text(servers: &[Ipv4Addr], search: &[String]) -> String {
    let mut text = String::from("# Written by netd.\n");
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    text
}

/// Writes it when it says something else.
pub(crate) fn write(path: &Path, servers: &[Ipv4Addr], search: &[String]) {
    let text = text(servers, search);
    if std::fs::read_to_string(path).is_ok_and(|present| present == text) {
        return;
    }
    if let Err(e) = store::write_atomically(path, text.as_bytes()) {
        log::warn!("{} could not be written: {e}", path.display());
    }
}
