//! Server and client together, over a drive that is none.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::protocol::{self, MAX_REQUEST, Reply};
use super::*;
use crate::policy::cap::Cap;

/// Answers at once, and counts; `sync_now` sends events until it is told to end.
struct FakeDrive {
    mode: Mutex<Policy>,
    syncs: AtomicUsize,
    flood: bool,
    go_on: AtomicBool,
}

impl FakeDrive {
    fn new() -> Self {
        Self {
            mode: Mutex::new(Policy::Online),
            syncs: AtomicUsize::new(0),
            flood: false,
            go_on: AtomicBool::new(true),
        }
    }
}

impl DriveControl for FakeDrive {
    fn status(&self) -> Result<DriveStatus, UserError> {
        Ok(DriveStatus {
            mountpoint: "/mnt/mail".into(),
            share: "/share".into(),
            policy: *self.mode.lock().unwrap(),
            state: State::Online,
            reason: String::new(),
            changes: Vec::new(),
            share_reachable: true,
            agent: None,
            journal_bytes: 0,
            pending_bytes: 0,
            cache: Default::default(),
            auto_sync: Default::default(),
            limit: Default::default(),
            files: Vec::new(),
            more_files: 0,
        })
    }

    fn set_mode(&self, policy: Policy, _: Option<u64>) -> Result<DriveStatus, UserError> {
        *self.mode.lock().unwrap() = policy;
        self.status()
    }

    fn set_limit(&self, _: Option<Cap>, _: Option<u64>) -> Result<DriveStatus, UserError> {
        self.status()
    }

    fn explain(&self) -> Result<Explanation, UserError> {
        Err(UserError::new("none", "no policy", "none"))
    }

    fn link(&self) -> Result<LinkStatus, UserError> {
        Ok(LinkStatus::default())
    }

    fn plan(&self) -> Result<SyncPlan, UserError> {
        Err(UserError::new("none", "no plan", "none"))
    }

    fn sync_now(
        &self,
        path: Option<&str>,
        allow_deletes: bool,
        progress: &dyn Progress,
    ) -> Result<SyncReport, UserError> {
        assert_eq!(allow_deletes, path == Some("emptied.pst"));
        if path == Some("panic") {
            panic!("as asked");
        }
        let rounds = if self.flood { 200_000 } else { 3 };
        for done in 0..rounds {
            progress.event(Event::Progress {
                phase: "upload".into(),
                path: path.map(str::to_owned),
                done,
                total: Some(rounds),
                unit: "bytes".into(),
            });
        }
        if path == Some("wait") {
            while self.go_on.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(SyncReport::default())
    }

    fn unmount(&self, now: bool, _: &dyn Progress) -> Result<UnmountReport, UserError> {
        if now {
            return Ok(UnmountReport::default());
        }
        Err(UserError::new(
            "busy",
            "the drive is in use",
            "close the files",
        ))
    }
}

struct House {
    _temp: tempfile::TempDir,
    registry: Registry,
    socket: PathBuf,
    ended: mpsc::Receiver<()>,
    server: Option<Server>,
}

fn quick() -> Limits {
    Limits {
        read: Duration::from_millis(300),
        write: Duration::from_millis(300),
        alive: Duration::from_millis(20),
        ..Limits::default()
    }
}

fn house(drive: Arc<dyn DriveControl>, limits: Limits) -> House {
    let temp = tempfile::tempdir().unwrap();
    let registry = Registry::open(&temp.path().join("run")).unwrap();
    let claim = registry.claim(Path::new("/mnt/mail"), "/share").unwrap();
    let socket = claim.socket().to_owned();
    let (tell, ended) = mpsc::channel();
    let server = Server::start(claim, drive, limits, move || tell.send(()).unwrap_or(())).unwrap();
    House {
        _temp: temp,
        registry,
        socket,
        ended,
        server: Some(server),
    }
}

impl House {
    fn client(&self) -> Client {
        Client::new(&self.registry.find(None).unwrap())
    }
}

/// Sends bytes as they are and answers the error's code.
fn raw(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    // The server may have answered and closed before it has read everything.
    let _ = stream.write_all(bytes);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    let line = reply.split(|&b| b == b'\n').next().unwrap_or_default();
    match protocol::decode_reply(line) {
        Ok(Reply::Error(error)) => error.code,
        other => panic!("no error but {other:?}"),
    }
}

#[test]
fn requests_are_answered_with_events_before() {
    let house = house(Arc::new(FakeDrive::new()), quick());
    let client = house.client();
    assert_eq!(client.ping().unwrap().0, std::process::id());
    assert_eq!(client.status().unwrap().policy, Policy::Online);
    assert_eq!(
        client.set_mode(Policy::Cached, None).unwrap().policy,
        Policy::Cached
    );
    assert_eq!(client.status().unwrap().policy, Policy::Cached);
    let mut seen = Vec::new();
    client
        .sync_now(Some("a.pst".into()), false, |event| seen.push(event))
        .unwrap();
    client
        .sync_now(Some("emptied.pst".into()), true, |_| {})
        .unwrap();
    seen.retain(|e| !matches!(e, Event::Alive {}));
    assert_eq!(seen.len(), 3);
    assert!(matches!(&seen[2], Event::Progress { done: 2, path: Some(p), .. } if p == "a.pst"));
}

#[test]
fn a_failed_unmount_keeps_the_daemon_and_a_good_one_ends_it() {
    let mut house = house(Arc::new(FakeDrive::new()), quick());
    let client = house.client();
    assert_eq!(client.unmount(false, |_| {}).unwrap_err().code, "busy");
    assert!(house.ended.try_recv().is_err());
    client.ping().unwrap();
    client.unmount(true, |_| {}).unwrap();
    house.ended.recv_timeout(Duration::from_secs(30)).unwrap();
    drop(house.server.take());
    assert!(house.registry.list().unwrap().is_empty());
    assert_eq!(client.ping().unwrap_err().code, "daemon-gone");
}

#[test]
fn garbage_and_oversized_requests_get_an_error_and_harm_nothing() {
    let house = house(Arc::new(FakeDrive::new()), quick());
    assert_eq!(raw(&house.socket, b"\0\xff garbage\n"), "control-protocol");
    assert_eq!(raw(&house.socket, b"{}\n"), "control-protocol");
    assert_eq!(
        raw(&house.socket, &vec![b'x'; MAX_REQUEST + 1]),
        "control-protocol"
    );
    let mut twice = protocol::encode_request(&Request::Ping {}).unwrap();
    twice.extend_from_within(..);
    assert_eq!(raw(&house.socket, &twice), "control-protocol");
    let other = br#"{"v":99,"request":{"op":"ping"}}"#;
    assert_eq!(
        raw(&house.socket, &[&other[..], b"\n"].concat()),
        "control-version"
    );
    house.client().ping().unwrap();
}

#[test]
fn paths_that_leave_the_drive_are_refused() {
    let fake = Arc::new(FakeDrive::new());
    let house = house(fake.clone(), quick());
    for path in ["", "/etc/passwd", "../x", "a/../../x", "a\0b"] {
        let error = house
            .client()
            .sync_now(Some(path.into()), false, |_| {})
            .unwrap_err();
        assert_eq!(error.code, "bad-path", "{path:?}");
    }
    assert_eq!(fake.syncs.load(Ordering::SeqCst), 0);
}

#[test]
fn a_client_that_never_finishes_its_request_is_let_go_and_holds_nobody() {
    let house = house(Arc::new(FakeDrive::new()), quick());
    let mut slow = UnixStream::connect(&house.socket).unwrap();
    slow.write_all(b"{\"v\":1,").unwrap();
    // Others are served while it dawdles; then it gets its error.
    house.client().ping().unwrap();
    let mut reply = String::new();
    slow.set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    slow.read_to_string(&mut reply).unwrap();
    assert!(reply.contains("control-timeout"), "{reply}");
}

#[test]
fn a_client_that_does_not_read_does_not_hold_the_work() {
    let fake = Arc::new(FakeDrive {
        flood: true,
        ..FakeDrive::new()
    });
    let house = house(fake.clone(), quick());
    let mut deaf = UnixStream::connect(&house.socket).unwrap();
    deaf.write_all(
        &protocol::encode_request(&Request::SyncNow {
            path: None,
            allow_deletes: false,
        })
        .unwrap(),
    )
    .unwrap();
    // 200,000 events are far more than socket and queue hold: only dropping them ends the sync.
    while fake.syncs.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    house.client().ping().unwrap();
}

#[test]
fn a_client_that_leaves_does_not_cancel_the_work() {
    let fake = Arc::new(FakeDrive::new());
    let house = house(fake.clone(), quick());
    let mut leaving = UnixStream::connect(&house.socket).unwrap();
    let request = Request::SyncNow {
        path: Some("wait".into()),
        allow_deletes: false,
    };
    leaving
        .write_all(&protocol::encode_request(&request).unwrap())
        .unwrap();
    leaving.read_exact(&mut [0; 1]).unwrap();
    drop(leaving);
    fake.go_on.store(false, Ordering::SeqCst);
    while fake.syncs.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_long_operation_shows_signs_of_life() {
    let fake = Arc::new(FakeDrive::new());
    let house = house(fake.clone(), quick());
    let mut alive = 0;
    // A silent daemon would be given up after a second; signs of life keep the client.
    let client = house.client().with_silence(Duration::from_secs(10));
    client
        .sync_now(Some("wait".into()), false, |event| {
            alive += usize::from(event == Event::Alive {});
            if alive == 3 {
                fake.go_on.store(false, Ordering::SeqCst);
            }
        })
        .unwrap();
    assert!(alive >= 3);
}

#[test]
fn a_panic_in_an_operation_is_an_error_and_not_the_end() {
    let house = house(Arc::new(FakeDrive::new()), quick());
    let error = house
        .client()
        .sync_now(Some("panic".into()), false, |_| {})
        .unwrap_err();
    assert_eq!(error.code, "daemon-panic");
    house.client().ping().unwrap();
}

#[test]
fn too_many_connections_are_told_so() {
    let limits = Limits {
        connections: 2,
        read: Duration::from_secs(30),
        ..quick()
    };
    let fake = Arc::new(FakeDrive::new());
    let house = house(fake.clone(), limits);
    let hold = |_| {
        let mut held = UnixStream::connect(&house.socket).unwrap();
        let request = Request::SyncNow {
            path: Some("wait".into()),
            allow_deletes: false,
        };
        held.write_all(&protocol::encode_request(&request).unwrap())
            .unwrap();
        // Its first event: the connection is being served.
        held.read_exact(&mut [0; 1]).unwrap();
        held
    };
    let held: Vec<_> = (0..2).map(hold).collect();
    assert_eq!(house.client().ping().unwrap_err().code, "control-busy");
    fake.go_on.store(false, Ordering::SeqCst);
    for mut stream in held {
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    // A place is free as soon as the server has counted down, shortly after the close.
    while house.client().ping().is_err() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_silent_daemon_is_given_up() {
    let temp = tempfile::tempdir().unwrap();
    let registry = Registry::open(&temp.path().join("run")).unwrap();
    // Claimed and listening, but nobody accepts.
    let _claim = registry.claim(Path::new("/mnt/mail"), "s").unwrap();
    let client = Client::new(&registry.find(None).unwrap());
    let error = client
        .with_silence(Duration::from_millis(50))
        .ping()
        .unwrap_err();
    assert_eq!(error.code, "daemon-silent");
}

/// Environment variable by which [`helper_of_another_user`] gets its socket.
const HELPER: &str = "PSTSYNCD_TEST_CONTROL_SOCKET";

/// Not a test by itself: run as another user by the one below, to knock at its socket.
#[test]
fn helper_of_another_user() {
    if let Some(socket) = std::env::var_os(HELPER) {
        let line = protocol::encode_request(&Request::Status {}).unwrap();
        println!("refused with {}", raw(Path::new(&socket), &line));
    }
}

/// The server asks the kernel who is there. The modes that also keep others out are opened first, so
/// that only this check is left.
#[test]
fn another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        // Our own user is another than this server's owner, and not root.
        let limits = Limits {
            owner: rustix::process::geteuid().as_raw() + 1,
            ..quick()
        };
        let house = house(Arc::new(FakeDrive::new()), limits);
        assert_eq!(house.client().status().unwrap_err().code, "not-your-drive");
        return;
    }
    let house = house(Arc::new(FakeDrive::new()), quick());
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(&house.socket, 0o777);
    open(house.socket.parent().unwrap(), 0o755);
    open(house._temp.path(), 0o755);
    // The test program itself may lie where the other user cannot reach it.
    let program = house._temp.path().join("helper");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    open(&program, 0o755);
    let run = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args([
            "--exact",
            "control::tests::helper_of_another_user",
            "--nocapture",
        ])
        .env(HELPER, &house.socket)
        .current_dir("/")
        .output();
    let out = match run {
        Ok(out) => out,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            crate::skip::skipped(
                "control-other-user",
                "setpriv (util-linux) is not installed",
            );
            return;
        }
        Err(e) => panic!("{e}"),
    };
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(
        said.contains("refused with not-your-drive"),
        "{said}{out:?}"
    );
    house.client().ping().unwrap();
}

#[test]
fn paths_on_the_command_line_become_paths_in_the_drive() {
    let at = Path::new("/mnt/mail");
    let path = |p: &str| client::path_in_drive(at, Path::new(p));
    assert_eq!(path("/mnt/mail/a/b.pst").unwrap(), "a/b.pst");
    assert_eq!(path("a/b.pst").unwrap(), "a/b.pst");
    assert_eq!(path("/elsewhere/b.pst").unwrap_err().code, "outside-drive");
}
