//! A round trip. The kernel at hand may not be able to hold packets back (netem), so a proxy beside
//! the server does it: what comes from either side is passed on half the round trip later. The link
//! itself is as it is: the client's connections end at the proxy, on the far side of the link.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::spaces::{Net, SERVER};

/// Pieces on their way in one direction of one connection, of [`PIECE`] bytes at most: who sends more
/// waits.
const ON_THE_WAY: usize = 1024;
const PIECE: usize = 16 << 10;

/// A running proxy; dropped, it takes no more connections, and those that it has end.
pub struct Delay {
    /// In microseconds, one way.
    one_way: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    port: u16,
    accepting: Option<std::thread::JoinHandle<()>>,
}

impl Delay {
    /// Takes connections at the server's address, on [`Delay::port`], and passes them on to the server's
    /// port `to` with `round_trip` added. Where nobody listens there, connections end at once.
    pub fn start(net: &Net, to: u16, round_trip: Duration) -> Self {
        let one_way = Arc::new(AtomicU64::new(half(round_trip)));
        let over = Arc::new(AtomicBool::new(false));
        let (own, stop) = (one_way.clone(), over.clone());
        let (port, accepting) = std::thread::scope(|s| {
            // Threads are where the one is that started them.
            let there = s.spawn(|| {
                let _inside = net.enter_server();
                let listener = TcpListener::bind((SERVER, 0)).expect("a port is free");
                listener.set_nonblocking(true).expect("a socket");
                let port = listener.local_addr().expect("a socket").port();
                let accepting = std::thread::spawn(move || accept(&listener, to, &own, &stop));
                (port, accepting)
            });
            there.join().expect("the proxy starts")
        });
        Self {
            one_way,
            over,
            port,
            accepting: Some(accepting),
        }
    }

    /// Where it takes connections, at the server's address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on what is sent takes so long.
    pub fn set(&self, round_trip: Duration) {
        self.one_way.store(half(round_trip), Ordering::SeqCst);
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

fn half(round_trip: Duration) -> u64 {
    u64::try_from(round_trip.as_micros() / 2).expect("a short time")
}

fn accept(listener: &TcpListener, to: u16, one_way: &Arc<AtomicU64>, over: &AtomicBool) {
    let mut open: Vec<TcpStream> = Vec::new();
    while !over.load(Ordering::SeqCst) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        let Ok(server) = TcpStream::connect((SERVER, to)) else {
            continue;
        };
        open.retain(|s| s.peer_addr().is_ok());
        for stream in [&client, &server] {
            let _ = stream.set_nonblocking(false);
            let _ = stream.set_nodelay(true);
            open.extend(stream.try_clone());
        }
        join(&client, &server, one_way);
        join(&server, &client, one_way);
    }
    for stream in open {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Passes on what comes from one to the other, until either ends.
fn join(from: &TcpStream, to: &TcpStream, one_way: &Arc<AtomicU64>) {
    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
        return;
    };
    let one_way = one_way.clone();
    let (sender, receiver) = sync_channel(ON_THE_WAY);
    std::thread::spawn(move || take(from, &sender, &one_way));
    std::thread::spawn(move || give(to, &receiver));
}

type Piece = (Instant, Vec<u8>);

fn take(mut from: TcpStream, on_the_way: &SyncSender<Piece>, one_way: &AtomicU64) {
    let mut piece = vec![0; PIECE];
    loop {
        let n = from.read(&mut piece).unwrap_or(0);
        let due = Instant::now() + Duration::from_micros(one_way.load(Ordering::SeqCst));
        // An end travels as bytes do.
        if on_the_way.send((due, piece[..n].to_vec())).is_err() || n == 0 {
            return;
        }
    }
}

fn give(mut to: TcpStream, on_the_way: &Receiver<Piece>) {
    while let Ok((due, bytes)) = on_the_way.recv() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if bytes.is_empty() || to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
