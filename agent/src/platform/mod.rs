//! What the agent needs of the operating system beyond the standard library, once for each system, under the
//! same few names. Everything else in this crate is the same everywhere.
//!
//! | | Linux | Windows |
//! |---|---|---|
//! | beneath the root | `openat2`, in the kernel | each directory opened, held so that it cannot be renamed, and refused where it is a reparse point |
//! | alone with a file | a write lease ([`take_alone`]) | opened with no sharing; granted only while nobody has it open, and whoever comes later is refused |
//! | identity of a file | device, inode | volume serial number, file index |
//! | secrets | modes 0700 and 0600 | `icacls`: the owner, administrators and the system alone |
//! | room for growth | reserved before anything is written | the free space is looked at; the writes find out |
//! | names made durable | `fsync` of the directory | NTFS orders them by its own log |
//!
//! What a system has no means for is an error of the kind [`io::ErrorKind::Unsupported`], never a yes.

use std::io;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::{
    Dir, available, forget_cached, hostname, identity, is_in_use, private_dir, private_file,
    reserve, still_alone, sync_dir, take_alone,
};
#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub use windows::{
    Dir, available, forget_cached, hostname, identity, is_in_use, private_dir, private_file,
    reserve, still_alone, sync_dir, take_alone,
};
#[cfg(not(any(target_os = "linux", windows)))]
compile_error!("the agent keeps other programs away from files by means of Linux or Windows");

/// How a file beneath the root is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read, beside whoever else has it open.
    Read,
    /// To read and write, as the first step of having it alone; `take_alone` is the second.
    Alone,
}

/// Why something beneath the root was not opened.
#[derive(Debug)]
pub enum Refused {
    /// It leads out of the root, or through a link.
    Outside,
    /// There is none.
    NotFound,
    /// It is a directory.
    IsDirectory,
    /// What the system said.
    Io(io::Error),
}

/// What tells one physical file from another, and one state of it from a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Last change, nanoseconds since 1970: of contents or attributes (Linux), of contents (Windows).
    pub changed_ns: i64,
    /// The file on its volume.
    pub file_id: u64,
    /// The volume.
    pub device: u64,
}

/// Calls `open` again for a while where somebody has the file for a moment: a process that is just being
/// started holds copies of our own files, a virus scanner looks at what was written.
fn patiently<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    use std::time::Duration;
    let mut wait = Duration::from_millis(10);
    loop {
        match open() {
            Err(e) if is_in_use(&e) && wait < Duration::from_millis(300) => {
                std::thread::sleep(wait);
                wait *= 2;
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    #[test]
    fn a_directory_serves_what_lies_in_it_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/box.pst"), b"inside").unwrap();
        std::fs::write(temp.path().join("secret"), b"outside").unwrap();
        let dir = Dir::open(&root).unwrap();
        assert!(dir.is_at(&root) && !dir.is_at(temp.path()));
        let inner = dir.beneath("a/b").unwrap();
        let file = inner.open_file("box.pst", Access::Read).unwrap();
        assert!(inner.names("box.pst", &file).unwrap());
        assert!(!inner.names("other", &file).unwrap());
        for path in ["..", "a/../..", "a/..", "../root"] {
            assert!(
                matches!(dir.beneath(path), Err(Refused::Outside | Refused::Io(_)))
                    || dir.beneath(path).is_ok_and(|d| d.is_at(&root)),
                "{path}"
            );
        }
        assert!(dir.open_file("../secret", Access::Read).is_err());
        assert!(matches!(dir.beneath("a/c"), Err(Refused::NotFound)));
        assert!(matches!(
            inner.open_file("no", Access::Read),
            Err(Refused::NotFound)
        ));
        assert!(matches!(dir.beneath("a/b/box.pst"), Err(Refused::NotFound)));
        drop((inner, file));
        // A directory is no container, however it is opened.
        for access in [Access::Read, Access::Alone] {
            match dir.open_file("a", access) {
                Ok(opened) => assert!(!opened.metadata().unwrap().is_file()),
                Err(Refused::IsDirectory) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_file_is_made_once_renamed_to_free_names_only_and_removed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        assert_eq!(dir.is_regular("log").unwrap(), None);
        dir.create_private("log").unwrap();
        assert_eq!(dir.is_regular("log").unwrap(), Some(true));
        std::fs::create_dir(temp.path().join("d")).unwrap();
        assert_eq!(dir.is_regular("d").unwrap(), Some(false));
        let again = dir.create_private("log").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        std::fs::write(dir.path_of("log"), b"one").unwrap();
        std::fs::write(temp.path().join("taken"), b"two").unwrap();
        let taken = dir.rename_new("log", "taken").unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(temp.path().join("taken")).unwrap(), b"two");
        dir.rename_new("log", "free").unwrap();
        dir.sync().unwrap();
        assert_eq!(std::fs::read(temp.path().join("free")).unwrap(), b"one");
        assert_eq!(dir.is_regular("log").unwrap(), None);
        dir.remove("free").unwrap();
        assert_eq!(
            dir.remove("free").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_file_that_was_replaced_is_another() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        let write = |text: &[u8]| {
            let mut f = File::create_new(&path).unwrap();
            f.write_all(text).unwrap();
        };
        write(b"one");
        let dir = Dir::open(temp.path()).unwrap();
        let first = dir.open_file("f", Access::Read).unwrap();
        let before = identity(&first).unwrap();
        assert!(before.changed_ns > 1_600_000_000_000_000_000);
        std::fs::rename(&path, temp.path().join("g")).unwrap();
        write(b"two");
        assert!(!dir.names("f", &first).unwrap());
        assert!(dir.names("g", &first).unwrap());
        assert!(available(&first, &dir).unwrap() < u64::MAX / 2);
    }
}
