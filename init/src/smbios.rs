//! The machine's own id, as its firmware tells it.

use uuid::Uuid;

/// Ids that makers of boards left in thousands of them.
const PLACEHOLDERS: [&str; 2] =
    ["03000200-0400-0500-0006-000700080009", "12345678-1234-5678-90ab-cddeefaabbcc"];

/// SMBIOS's system UUID; `None` where there is none that tells this machine from others.
pub(crate) fn system_uuid() -> Option<Uuid> {
    parse(&std::fs::read_to_string("/sys/class/dmi/id/product_uuid").ok()?)
}

fn parse(text: &str) -> Option<Uuid> {
    let id = Uuid::parse_str(text.trim()).ok()?;
    let [first, rest @ ..] = id.as_bytes();
    let uniform = rest.iter().all(|byte| byte == first);
    let known = PLACEHOLDERS.iter().any(|placeholder| Uuid::parse_str(placeholder) == Ok(id));
    (!uniform && !known).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_many_machines_share_is_no_id() {
        for shared in [
            "",
            "Not Settable",
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "03000200-0400-0500-0006-000700080009\n",
        ] {
            assert_eq!(parse(shared), None, "{shared}");
        }
        assert!(parse("4c4c4544-0051-3510-8052-b4c04f4e4d32\n").is_some());
    }
}
