//! The front: what stands before tiny_http.

pub(crate) mod chunked;
