//! The link that other tests are run over (`net/`) is what they take it for: as slow, as far and as
//! lossy as it was told, dead without a word when it is down, and gone with the test, killed or not.
//!
//! Nothing here says how fast a busy machine is: times have bounds from below only, or wide ones.

mod net;
#[path = "support/skip.rs"]
mod skip;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use net::delay::Delay;
use net::{Net, SERVER};

const PATIENCE: Duration = Duration::from_secs(60);

/// A server that answers every byte it gets with the same byte.
fn echo(net: &Net) -> u16 {
    std::thread::scope(|s| {
        let listening = s.spawn(|| {
            let _inside = net.enter_server();
            let listener = TcpListener::bind((SERVER, 0)).expect("listens");
            let port = listener.local_addr().expect("bound").port();
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    std::thread::spawn(move || {
                        let (mut from, mut to) = (&stream, &stream);
                        let _ = std::io::copy(&mut from, &mut to);
                    });
                }
            });
            port
        });
        listening.join().expect("starts")
    })
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((SERVER, port)).expect("connects");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// Sends so many bytes there and gets them back.
fn send(stream: &TcpStream, len: usize) -> Duration {
    let began = Instant::now();
    std::thread::scope(|s| {
        s.spawn(|| (&mut &*stream).write_all(&vec![7; len]).expect("sends"));
        let mut back = vec![0; len];
        (&mut &*stream).read_exact(&mut back).expect("comes back");
        assert!(back.iter().all(|b| *b == 7));
    });
    began.elapsed()
}

#[test]
fn the_rate_is_what_was_set_and_every_byte_is_counted() {
    let Some(net) = Net::new() else { return };
    let _inside = net.enter();
    let stream = connect(echo(&net));
    let before = net.passed();
    send(&stream, 1_000_000);
    let passed = net.passed().since(before);
    for way in [passed.up, passed.down] {
        // Every packet has headers; the other direction's acknowledgements are counted too.
        assert!((1_000_000..1_300_000).contains(&way), "{passed:?}");
    }
    net.shape(1_000_000);
    // 125,000 bytes a second: what the bucket holds is let through at once.
    let took = send(&stream, 250_000);
    assert!(
        took > Duration::from_millis(1500),
        "{took:?} for 2 s' worth"
    );
    assert!(took < Duration::from_secs(20), "{took:?} for 2 s' worth");
    net.shape(100_000_000);
    let took = send(&stream, 250_000);
    assert!(
        took < Duration::from_millis(1500),
        "{took:?} for 20 ms' worth"
    );
    net.unshape();
    send(&stream, 250_000);
}

#[test]
fn the_round_trip_is_what_was_set() {
    let Some(net) = Net::new() else { return };
    let _inside = net.enter();
    let delay = Delay::start(&net, echo(&net), Duration::from_millis(200));
    let stream = connect(delay.port());
    for _ in 0..3 {
        let took = send(&stream, 100);
        assert!(took >= Duration::from_millis(200), "{took:?}");
    }
    // Not each piece for itself: many on their way at once.
    let took = send(&stream, 2_000_000);
    assert!(took < Duration::from_secs(20), "{took:?}");
    delay.set(Duration::from_millis(20));
    send(&stream, 100);
    let best = (0..5).map(|_| send(&stream, 100)).min().expect("five");
    assert!(best >= Duration::from_millis(20), "{best:?}");
    assert!(best < Duration::from_millis(200), "{best:?}");
    // With the proxy the connection ends.
    drop(delay);
    assert!(matches!((&stream).read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn so_many_packets_are_lost() {
    let Some(net) = Net::new() else { return };
    let _inside = net.enter();
    let answers = std::thread::scope(|s| {
        let server = s.spawn(|| {
            let _inside = net.enter_server();
            UdpSocket::bind((SERVER, 0)).expect("binds")
        });
        server.join().expect("starts")
    });
    let wait = Some(Duration::from_millis(500));
    answers.set_read_timeout(wait).expect("a socket");
    let client = UdpSocket::bind("0.0.0.0:0").expect("binds");
    let to = answers.local_addr().expect("bound");
    let arrived = || {
        let mut n = 0;
        for _ in 0..2000 {
            client.send_to(b"x", to).expect("sent");
            n += usize::from(answers.recv(&mut [0]).is_ok());
        }
        n
    };
    net.lose(10);
    // 200 are lost of 2000; 13 is the standard deviation. Each that is lost is waited for.
    answers
        .set_read_timeout(Some(Duration::from_millis(20)))
        .expect("a socket");
    let n = arrived();
    assert!((1600..1900).contains(&n), "{n} of 2000 arrived");
    while answers.recv(&mut [0]).is_ok() {}
    net.lose(100);
    client.send_to(b"x", to).expect("sent");
    assert!(answers.recv(&mut [0]).is_err());
    net.keep();
    answers.set_read_timeout(wait).expect("a socket");
    assert_eq!(arrived(), 2000);
}

#[test]
fn a_link_that_is_down_says_nothing_and_goes_on_when_it_is_up() {
    let Some(net) = Net::new() else { return };
    let _inside = net.enter();
    let stream = connect(echo(&net));
    send(&stream, 100);
    net.down();
    (&stream).write_all(b"x").expect("the kernel takes it");
    let short = Some(Duration::from_millis(700));
    stream.set_read_timeout(short).expect("a socket");
    let silent = (&stream).read(&mut [0]).expect_err("nothing comes");
    let silence = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
    assert!(silence.contains(&silent.kind()), "{silent}");
    net.up();
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    assert_eq!((&stream).read(&mut [0]).expect("it comes now"), 1);
}

const HELD: &str = "PSTSYNCD_TEST_NET_HELD";

/// Not a test of its own: what the next one starts, to kill it.
#[test]
fn part_of_holding() {
    if std::env::var_os(HELD).is_none() {
        return;
    }
    let Some(net) = Net::new() else { return };
    let mut program = net.server_command("sh");
    program.args(["-c", "echo in; exec sleep 1000"]);
    let mut child = program.stdout(Stdio::piped()).spawn().expect("runs");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    out.read_line(&mut String::new()).expect("it is in there");
    let [a, b] = net.keepers();
    println!("\nheld {a} {b}");
    child.wait().expect("it sleeps");
}

#[test]
fn nothing_is_left_of_it_when_its_test_is_killed() {
    if Net::new().is_none() {
        return;
    }
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "part_of_holding", "--nocapture"])
        .env(HELD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    let out = BufReader::new(child.stdout.take().expect("piped"));
    let line = out
        .lines()
        .map_while(Result::ok)
        .find_map(|l| l.strip_prefix("held ").map(str::to_owned));
    let keepers: Vec<u32> = line
        .expect("it says so")
        .split(' ')
        .map(|n| n.parse().expect("a pid"))
        .collect();
    let network = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let networks: Vec<_> = keepers.iter().filter_map(network).collect();
    assert_eq!(networks.len(), 2);
    child.kill().expect("kills");
    child.wait().expect("ends");
    // No process is left in either network: with the last one they are gone.
    let inhabited = || {
        let all = std::fs::read_dir("/proc").expect("/proc").flatten();
        all.filter_map(|e| e.file_name().to_str()?.parse().ok())
            .filter(|pid: &u32| Path::new("/proc").join(pid.to_string()).exists())
            .any(|pid| network(&pid).is_some_and(|n| networks.contains(&n)))
    };
    let began = Instant::now();
    while inhabited() {
        assert!(began.elapsed() < PATIENCE, "something lives on");
        std::thread::sleep(Duration::from_millis(20));
    }
}
