//! Reading a JSON body: what is wrong with it is said with the field's name, the line and the column.

use std::io::Read;

use keelson_api::{Fault, Problem};
use serde::de::DeserializeOwned;

use super::{MAX_JSON, Request};

impl Request {
    /// The body as JSON. Unknown, missing and mistyped fields are refused by name.
    pub fn json<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        let mut body = Vec::new();
        let read = (&mut self.body).take(MAX_JSON + 1).read_to_end(&mut body);
        read.map_err(|e| {
            Problem::new(Fault::MalformedRequest, format!("the request's body did not arrive whole: {e}"))
                .remedy("send the request again")
        })?;
        if body.len() as u64 > MAX_JSON {
            return Err(Problem::new(
                Fault::RequestTooLarge,
                format!("the request's body is larger than {MAX_JSON} bytes"),
            ));
        }
        parse(&body)
    }
}

/// Reads JSON as `T`.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(
            Problem::new(Fault::InvalidArgument, "the request has no body").remedy("send a JSON object")
        );
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
        let path = e.path().to_string();
        problem(e.inner(), &path)
    })?;
    reader.end().map_err(|e| problem(&e, "."))?;
    Ok(value)
}

fn problem(error: &serde_json::Error, path: &str) -> Problem {
    let text = error.to_string();
    if error.is_syntax() || error.is_eof() {
        return Problem::new(Fault::InvalidArgument, format!("the request's body is no JSON: {text}"))
            .remedy("correct the text at that line and column");
    }
    let base = if path == "." { "" } else { path };
    let field = field(&text, base);
    let problem = Problem::new(Fault::InvalidArgument, format!("the request's body does not fit: {text}"));
    match field {
        Some(field) => problem.field(field),
        None => problem,
    }
}

/// The field's path. serde says the name of an unknown, missing or doubled field only in its message.
fn field(message: &str, base: &str) -> Option<String> {
    let named = ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start)?.split('`').next());
    match named {
        None if base.is_empty() => None,
        None => Some(base.to_owned()),
        Some(name) if base.is_empty() => Some(name.to_owned()),
        // An unknown field is already the path's last part, a missing one is not.
        Some(name) if base == name || base.ends_with(&format!(".{name}")) => Some(base.to_owned()),
        Some(name) => Some(format!("{base}.{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::VmSpec;
    use proptest::prelude::*;

    fn refused(body: &str) -> Problem {
        parse::<VmSpec>(body.as_bytes()).unwrap_err()
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, field) in [
            (r#"{"name":"a","memory_mib":64,"kernel":"[d] k","colour":1}"#, Some("colour")),
            (r#"{"name":"a","kernel":"[d] k"}"#, Some("memory_mib")),
            (r#"{"name":"a","memory_mib":"64","kernel":"[d] k"}"#, Some("memory_mib")),
            (r#"{"name":"a","memory_mib":64,"memory_mib":65,"kernel":"[d] k"}"#, Some("memory_mib")),
            (
                r#"{"name":"a","memory_mib":64,"kernel":"k","disks":[{},{"size_mib":-1}]}"#,
                Some("disks[1].size_mib"),
            ),
            (r#"{"name":"a","memory_mib":64,"kernel":"k","disks":[{"size":1}]}"#, Some("disks[0].size")),
            (r#"{"name":"a","memory_mib":64,"kernel":"k","nics":[{}]}"#, Some("nics[0].port_group")),
            ("[]", None),
            ("", None),
            ("{", None),
            ("{} {}", Some("name")),
        ] {
            let problem = refused(body);
            assert_eq!(problem.fault, Fault::InvalidArgument, "{body}");
            assert_eq!(problem.field.as_deref(), field, "{body}: {problem}");
        }
        assert!(refused("{\n \"name\": \n}").detail.contains("line 3 column 1"));
        assert!(parse::<serde_json::Value>(b"{} x").is_err(), "what follows the value is refused");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse::<VmSpec>(&body);
        }
    }
}
