//! A network of a test's own between a client and a server: one that counts, cuts, falsifies, or
//! leads to something else than the server.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::port::Port;

/// What a new connection meets.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// The server at this port.
    To(u16),
    /// That server, until it has answered so many bytes.
    Cut(u16, usize),
    /// That server, with one bit of its answers wrong: in this byte.
    Bent(u16, usize),
    /// That server, with the first message of each side changed by this; it is told which: `true`, to
    /// the server.
    Changed(u16, fn(&mut [u8], bool)),
    /// A captive portal.
    Portal,
    /// Somebody who closes.
    Closed,
}

pub struct Proxy {
    port: Port,
    way: Arc<Mutex<Way>>,
    connects: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    pub fn new(way: Way) -> Self {
        let port = Port::take();
        let listener = TcpListener::bind(("127.0.0.1", port.number())).unwrap();
        let proxy = Self {
            port,
            way: Arc::new(Mutex::new(way)),
            connects: Arc::default(),
            open: Arc::default(),
        };
        let (way, connects, open) = (
            proxy.way.clone(),
            proxy.connects.clone(),
            proxy.open.clone(),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                connects.fetch_add(1, Ordering::SeqCst);
                open.lock().unwrap().push(stream.try_clone().unwrap());
                let way = *way.lock().unwrap();
                std::thread::spawn(move || serve(stream, way));
            }
        });
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Connections so far.
    pub fn connects(&self) -> usize {
        self.connects.load(Ordering::SeqCst)
    }

    /// From now on it is this; those who are connected are cut off.
    pub fn turn(&self, way: Way) {
        *self.way.lock().unwrap() = way;
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn serve(mut client: TcpStream, way: Way) {
    let mut change: fn(&mut [u8], bool) = |_, _| {};
    let (port, cut, bent) = match way {
        Way::To(port) => (port, usize::MAX, usize::MAX),
        Way::Changed(port, by) => {
            change = by;
            (port, usize::MAX, usize::MAX)
        }
        Way::Cut(port, at) => (port, at, usize::MAX),
        Way::Bent(port, at) => (port, usize::MAX, at),
        Way::Portal => {
            let _ = client.set_read_timeout(Some(Duration::from_secs(2)));
            let _ = client.read(&mut [0; 512]);
            let page = "HTTP/1.1 302 Found\r\nLocation: http://portal.example/login\r\n\
                        Content-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = client.write_all(page.as_bytes());
            return;
        }
        Way::Closed => return,
    };
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
        return;
    };
    let (mut up_from, mut up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        if matches!(way, Way::Changed(..)) {
            let _ = pass_message(&mut up_from, &mut up_to, |m| change(m, true));
        }
        let _ = std::io::copy(&mut up_from, &mut up_to);
        let _ = up_to.shutdown(Shutdown::Both);
    });
    let mut server = server;
    let (mut done, mut buf) = (0, [0; 4096]);
    if matches!(way, Way::Changed(..)) {
        let _ = pass_message(&mut server, &mut client, |m| change(m, false));
    }
    while let Ok(n) = server.read(&mut buf) {
        if let Some(at) = bent.checked_sub(done).filter(|at| *at < n) {
            buf[at] ^= 0x10;
        }
        let n = n.min(cut - done);
        done += n;
        if n == 0 || client.write_all(&buf[..n]).is_err() || done == cut {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

/// Passes one message, behind its length, changed.
fn pass_message(
    from: &mut TcpStream,
    to: &mut TcpStream,
    change: impl FnOnce(&mut [u8]),
) -> std::io::Result<()> {
    let mut head = [0; 4];
    from.read_exact(&mut head)?;
    let len = u32::from_be_bytes(head) as usize;
    if len > 1 << 16 {
        // No message of SMB: as it is.
        return to.write_all(&head);
    }
    let mut message = vec![0; len];
    from.read_exact(&mut message)?;
    change(&mut message);
    to.write_all(&head)?;
    to.write_all(&message)
}
