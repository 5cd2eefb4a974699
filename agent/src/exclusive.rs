//! Keeping other programs away from a container while it is changed (DESIGN R8).
//!
//! A write lease (`fcntl F_SETLEASE`, Linux) is granted only while nobody else has the file open,
//! be it a local program or the server of an SMB share; whoever opens it later waits in the kernel
//! until the lease is given back, or `/proc/sys/fs/lease-break-time` (45 s) has passed. A refusal
//! means that the work is deferred. It is never forced.
//!
//! No crate wraps this call, and this workspace has no unsafe code. A lease belongs to the open
//! file, not to the process that asked for it, so a helper that inherits the file and then ends
//! can ask: Perl, which is an essential package of Debian and there on all servers we know of.
//! That also keeps the lease-break signal (by default deadly) away from this process.
//!
//! Beside the lease there is an advisory lock, by which agents on one file keep apart from each
//! other, also where leases are switched off.

use std::fs::{File, TryLockError};
use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use sync::wire::ErrorCode;

use crate::error::Fault;

/// Not looked up in the search path, so that nobody can put another program there.
const PERL: &str = "/usr/bin/perl";
/// `F_SETLEASE` is 1024, `F_WRLCK` is 1 on every Linux; the exit status is the errno.
const TAKE: &str = "exit(defined(fcntl(STDIN, 1024, 1)) ? 0 : $! + 0)";
/// `F_GETLEASE` is 1025. A lease that is being broken reads as what it is broken to.
const HELD: &str = "my $l = fcntl(STDIN, 1025, 0); exit(defined($l) && $l == 1 ? 0 : 1)";
/// The last wait before a file counts as in use is at most this long.
const PATIENCE: Duration = Duration::from_millis(500);
const EACCES: i32 = 13;
const EAGAIN: i32 = 11;

/// How to keep others away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusivity {
    /// A kernel lease.
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
    /// [`NotAlone`]; nothing is held then but perhaps the advisory lock.
    pub fn hold(self, path: &str, file: &File) -> Result<(), NotAlone> {
        self.take(path, file).map_err(|fault| {
            let message = fault.body().message;
            match fault.code {
                ErrorCode::InUse => NotAlone::InUse(message),
                _ => NotAlone::NoLease(message),
            }
        })
    }

    /// Takes the container for as long as `file` is open.
    ///
    /// A process that is just being started holds copies of our files for a moment, until it
    /// becomes the other program: what is refused is asked for again a few times.
    pub fn take(self, path: &str, file: &File) -> Result<(), Fault> {
        let mut wait = Duration::from_millis(20);
        loop {
            match self.try_take(path, file) {
                Err(fault) if fault.code == ErrorCode::InUse && wait < PATIENCE => {
                    std::thread::sleep(wait);
                    wait *= 2;
                }
                result => return result,
            }
        }
    }

    fn try_take(self, path: &str, file: &File) -> Result<(), Fault> {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Fault::in_use(path)),
            Err(TryLockError::Error(e)) => return Err(Fault::io(path, &e)),
        }
        if self == Self::Promised {
            return Ok(());
        }
        match ask(TAKE, file).map_err(|e| no_leases(path, &format!("{PERL}: {e}")))? {
            0 => Ok(()),
            EAGAIN => Err(Fault::in_use(path)),
            EACCES => Err(no_leases(path, "the agent's user does not own the file")),
            errno => Err(no_leases(
                path,
                &io::Error::from_raw_os_error(errno).to_string(),
            )),
        }
    }

    /// Whether nobody has asked for the container since it was taken.
    pub fn undisturbed(self, file: &File) -> bool {
        self == Self::Promised || matches!(ask(HELD, file), Ok(0))
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

/// Runs a line of Perl on the open file; its exit status.
fn ask(script: &str, file: &File) -> io::Result<i32> {
    let status = Command::new(PERL)
        .args(["-e", script])
        .env_clear()
        .stdin(Stdio::from(file.try_clone()?))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    status
        .code()
        .ok_or_else(|| io::Error::other("ended by a signal"))
}

#[cfg(test)]
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
        let fault = Exclusivity::Lease.take("a", &ours).unwrap_err();
        assert_eq!(fault.code, ErrorCode::InUse);
        Exclusivity::Promised.take("a", &ours).unwrap();
        drop(other);
        Exclusivity::Lease.take("a", &ours).unwrap();
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
