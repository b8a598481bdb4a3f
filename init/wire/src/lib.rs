//! Framed JSON with file descriptors over Unix stream sockets: what every daemon's `control` speaks.
//!
//! A frame is a 4-byte little-endian length (at most [`MAX_FRAME`] bytes) followed by that many bytes of JSON. File descriptors
//! (at most [`MAX_FDS`]) travel as SCM_RIGHTS ancillary data (unix(7)) with the frame's first byte, and arrive close-on-exec.
//! A conversation is requests and replies in order, one at a time; a request that opens a stream turns the connection into a
//! one-way flow of events. A reply is a [`Reply`]: either what was asked for, or the daemon's refusal in its own words.

mod conn;
mod rpc;
#[allow(unsafe_code)]
mod sys;

pub use conn::{Conn, Listener, MAX_FDS, MAX_FRAME, PeerIdentity, WireError};
pub use rpc::{CallError, Client, Events, Reply, Served, Stream, serve};

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Conn, Conn) {
        let (a, b) = UnixStream::pair().unwrap();
        (Conn::from_stream(a), Conn::from_stream(b))
    }

    #[test]
    fn a_frame_arrives_with_its_descriptors() {
        let (a, b) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through the socket").unwrap();
        a.send(&("hello", 7), &[file.as_fd()]).unwrap();
        let ((word, number), fds): ((String, u32), _) = b.recv().unwrap().unwrap();
        assert_eq!((word.as_str(), number, fds.len()), ("hello", 7, 1));
        let mut received = std::fs::File::from(fds.into_iter().next().unwrap());
        received.rewind().unwrap();
        let mut text = String::new();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through the socket");
    }

    #[test]
    fn a_frame_larger_than_the_socket_buffer_arrives_whole() {
        let (a, b) = pair();
        let long = "x".repeat(3 << 20);
        let sender = std::thread::spawn(move || a.send(&long, &[]).map(|()| long.len()));
        let (text, _): (String, _) = b.recv().unwrap().unwrap();
        assert_eq!(text.len(), sender.join().unwrap().unwrap());
    }

    #[test]
    fn an_overlong_announcement_is_refused_before_it_is_believed() {
        let (a, b) = UnixStream::pair().unwrap();
        (&a).write_all(&u32::MAX.to_le_bytes()).unwrap();
        let refused = Conn::from_stream(b).recv::<String>();
        assert!(matches!(refused, Err(WireError::TooLong { .. })), "{refused:?}");
    }

    #[test]
    fn a_closed_peer_is_none_between_frames_and_an_error_within_one() {
        let (a, b) = pair();
        drop(a);
        assert!(b.recv::<String>().unwrap().is_none());
        let (a, b) = UnixStream::pair().unwrap();
        (&a).write_all(&[9, 0, 0, 0, b'"']).unwrap();
        drop(a);
        assert!(matches!(Conn::from_stream(b).recv::<String>(), Err(WireError::Cut)));
    }

    #[test]
    fn a_daemon_answers_refuses_and_streams() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("test.sock");
        let listener = Listener::bind(&path).unwrap();
        std::thread::spawn(move || {
            serve(
                &listener,
                |_| true,
                |request: u32, _, _| -> Served<u32, String, u32> {
                    match request {
                        0 => Served::Refused("zero".into()),
                        9 => Served::Stream(
                            3,
                            Box::new(|stream| (0..3).for_each(|n| stream.send(&n).unwrap())),
                        ),
                        n => Served::Answer(n + 1, vec![]),
                    }
                },
            )
        });
        let mut client = Client::<u32, u32, String>::connect(&path).unwrap();
        assert_eq!(client.call(&4).unwrap(), 5);
        assert!(matches!(client.call(&0), Err(CallError::Refused(why)) if why == "zero"));
        assert_eq!(client.call(&5).unwrap(), 6);
        let (count, events) = client.stream::<u32>(&9).unwrap();
        assert_eq!(events.map(Result::unwrap).collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
    }
}
