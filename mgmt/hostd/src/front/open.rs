//! Network connections by the address that they came in on: they end when HTTPS is no longer served there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The connections that were accepted on VMkernel adapters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Open(Arc<Mutex<Vec<Connection>>>);

#[derive(Debug)]
struct Connection {
    at: IpAddr,
    stream: Weak<TcpStream>,
}

impl Open {
    fn list(&self) -> MutexGuard<'_, Vec<Connection>> {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|connection| connection.stream.strong_count() > 0);
        list
    }

    /// Remembers a connection for as long as it lives.
    pub(crate) fn add(&self, stream: &Arc<TcpStream>) -> io::Result<()> {
        let at = stream.local_addr()?.ip();
        self.list().push(Connection { at, stream: Arc::downgrade(stream) });
        Ok(())
    }

    /// Whether there are connections on other addresses than these.
    pub(crate) fn any_beside(&self, served: &[Ipv4Addr]) -> bool {
        self.list().iter().any(|connection| beside(connection.at, served))
    }

    /// Closes all connections on other addresses than these.
    pub(crate) fn close_beside(&self, served: &[Ipv4Addr]) {
        for connection in self.list().iter().filter(|connection| beside(connection.at, served)) {
            if let Some(stream) = connection.stream.upgrade() {
                log::info!("a connection to {} is closed: HTTPS is no longer served there", connection.at);
                // Its thread sees the end and gives the rest back.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

fn beside(at: IpAddr, served: &[Ipv4Addr]) -> bool {
    !served.iter().any(|served| at == IpAddr::V4(*served))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn connections_on_an_address_that_is_no_longer_served_end_and_others_go_on() {
        let open = Open::default();
        let connect = |address: &str| {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let stream = Arc::new(listener.accept().unwrap().0);
            open.add(&stream).unwrap();
            (client, stream)
        };
        let (mut stays, ours) = connect("127.0.0.1");
        let (mut goes, theirs) = connect("127.0.0.2");
        let (one, two): (Ipv4Addr, Ipv4Addr) = ("127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap());
        assert!(!open.any_beside(&[one, two]));
        open.close_beside(&[one, two]);
        (&*theirs).write_all(b"x").unwrap();
        goes.read_exact(&mut [0]).unwrap();

        assert!(open.any_beside(&[one]));
        open.close_beside(&[one]);
        assert_eq!(goes.read(&mut [0]).unwrap(), 0);
        assert_eq!((&*theirs).read(&mut [0]).unwrap(), 0, "its thread goes on");
        (&*ours).write_all(b"x").unwrap();
        stays.read_exact(&mut [0]).unwrap();

        // What has ended by itself is forgotten.
        drop(theirs);
        assert!(!open.any_beside(&[one]));
        drop(ours);
        assert!(!open.any_beside(&[]));
    }
}
