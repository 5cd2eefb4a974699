//! Keeping other programs away from a container while it is changed (DESIGN R8).
//!
//! Granted only while nobody else has the file open, be it a local program or the server of an SMB share
//! ([`platform`] says by what means). A refusal means that the work is deferred. It is never forced.
//!
//! Beside that there is a lock of the file, by which agents on one file keep apart from each
//! other, also where leases are switched off.

use std::fs::{File, TryLockError};
use std::time::Duration;

use sync::wire::ErrorCode;

use crate::error::Fault;
use crate::platform::{self, Access};
use crate::root::Place;

/// The last wait before a file counts as in use is at most this long.
const PATIENCE: Duration = Duration::from_millis(500);

/// How to keep others away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusivity {
    /// The system keeps others away: a lease on Linux, no sharing on Windows.
    Lease,
    /// Nobody else uses the root, the user says.
    Promised,
}

/// Why a file could not be had alone.
#[derive(Debug, PartialEq, Eq)]
pub enum NotAlone {
    /// Another program has it open: try again later.
    InUse(String),
    /// No lease can be had there.
    NoLease(String),
}

impl Exclusivity {
    /// Takes a file that the caller has open, for as long as it stays open. `path` is its name in
    /// messages.
    ///
    /// # Errors
    /// [`NotAlone`]; nothing is held then but perhaps the lock. On Windows always
    /// [`NotAlone::NoLease`], unless promised: there a file is had alone by how it is opened.
    pub fn hold(self, path: &str, file: &File) -> Result<(), NotAlone> {
        self.patiently(path, file, Access::Read).map_err(|fault| {
            let message = fault.body().message;
            match fault.code {
                ErrorCode::InUse => NotAlone::InUse(message),
                _ => NotAlone::NoLease(message),
            }
        })
    }

    /// Takes a container that was opened with `Access::Alone`, for as long as its file is open.
    pub fn take(self, place: &Place) -> Result<(), Fault> {
        self.patiently(&place.path, &place.file, place.access)
    }

    /// A process that is just being started holds copies of our files for a moment, until it
    /// becomes the other program: what is refused is asked for again a few times.
    fn patiently(self, path: &str, file: &File, opened: Access) -> Result<(), Fault> {
        let mut wait = Duration::from_millis(20);
        loop {
            match self.try_take(path, file, opened) {
                Err(fault) if fault.code == ErrorCode::InUse && wait < PATIENCE => {
                    std::thread::sleep(wait);
                    wait *= 2;
                }
                result => return result,
            }
        }
    }

    fn try_take(self, path: &str, file: &File, opened: Access) -> Result<(), Fault> {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Fault::in_use(path)),
            Err(TryLockError::Error(e)) => return Err(Fault::io(path, &e)),
        }
        if self == Self::Promised {
            return Ok(());
        }
        platform::take_alone(file, opened).map_err(|e| {
            if platform::is_in_use(&e) {
                Fault::in_use(path)
            } else {
                no_leases(path, &e.to_string())
            }
        })
    }

    /// Whether nobody has asked for the container since it was taken.
    pub fn undisturbed(self, file: &File) -> bool {
        self == Self::Promised || platform::still_alone(file)
    }
}

fn no_leases(path: &str, detail: &str) -> Fault {
    let mut fault = Fault::new(
        ErrorCode::Storage,
        format!("{path}: no file lease can be had ({detail})"),
    );
    fault.next = "run it as the files' owner or root on a local file system, \
                  or with --exclusive where no other program uses them";
    fault
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn a_lease_is_refused_while_another_has_the_file_open_and_outlives_the_helper() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"x").unwrap();
        let ours = open(&path);
        let other = File::open(&path).unwrap();
        let refused = Exclusivity::Lease.hold("a", &ours).unwrap_err();
        assert!(matches!(refused, NotAlone::InUse(_)));
        Exclusivity::Promised.hold("a", &ours).unwrap();
        drop(other);
        Exclusivity::Lease.hold("a", &ours).unwrap();
        assert!(Exclusivity::Lease.undisturbed(&ours));
        // Somebody who will not wait opens it: refused, and we can tell that they asked.
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let refused = rustix::fs::open(&path, flags, rustix::fs::Mode::empty());
        assert_eq!(refused.unwrap_err(), rustix::io::Errno::AGAIN);
        assert!(!Exclusivity::Lease.undisturbed(&ours));
        drop(ours);
        drop(open(&path));
    }
}
