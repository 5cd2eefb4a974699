//! A poor link that programs fill with what they read is slow, and not dead: all of them get what they asked
//! for, and the drive does not think that the share is gone.

mod far;
mod net;
mod support;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use far::Far;
use support::{port, skip};

const RATE: u64 = 1_000_000;
const READERS: u8 = 4;
const SIZE: usize = 700 << 10;

fn read(path: &Path, byte: u8) {
    let mut file = File::open(path).expect("opens");
    let mut all = Vec::new();
    let mut buf = vec![0; 128 << 10];
    loop {
        let n = file.read(&mut buf).expect("reads");
        let Some(part) = buf.get(..n).filter(|part| !part.is_empty()) else {
            break;
        };
        all.extend_from_slice(part);
    }
    assert!(all == vec![byte; SIZE], "{} bytes", all.len());
}

fn filled_by_readers(mode: &str) {
    let Some(mut far) = Far::new("") else { return };
    for n in 0..READERS {
        let path = far.path(&format!("share/{n}.bin"));
        std::fs::write(path, vec![n; SIZE]).expect("writes");
    }
    far.mount("drive", mode, &["--pin", "nothing"]);
    far.net.shape(RATE);
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for n in 0..READERS {
            let path = far.path(&format!("drive/{n}.bin"));
            let done = &done;
            scope.spawn(move || {
                let ended = Ended(done);
                read(&path, n);
                drop(ended);
            });
        }
        while done.load(Ordering::SeqCst) < usize::from(READERS) {
            let (_, status) = far.run(&["status"]);
            assert_ne!(status["state"], "offline", "{status}");
            assert_eq!(status["share_reachable"], true, "{status}");
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    far.net.unshape();
    far.unmount("drive");
}

/// Also when it fails.
struct Ended<'a>(&'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn by_the_link() {
    filled_by_readers("auto");
}

#[test]
fn passed_through() {
    filled_by_readers("online");
}

#[test]
fn cached() {
    filled_by_readers("cached");
}
