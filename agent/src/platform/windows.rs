//! Windows: share modes keep others away from a file, and hold a path in place while it is walked.
//!
//! **Beneath the root.** The standard library cannot open a file relative to an open directory. So each
//! directory on the way is opened without following it where it is a reparse point (a symbolic link, a
//! junction, a mounted volume), refused if it is one, and kept open without letting others delete: a
//! directory that is open so cannot be renamed or removed, and the path through it stays what was
//! looked at. One thing is left to those who may make directories on the share: an *empty* directory can be
//! turned into a junction while it is open. So all of them are looked at again once the file is open; who
//! turns it back in between, in those microseconds, has a file opened that lies elsewhere.
//!
//! **Alone with a file.** Opened with no sharing, a file is ours as long as it is open: the call fails while
//! anybody has it open, be it a local program or a client of the server's share, and everybody who
//! comes later is refused. This is decided at the opening and cannot be had afterwards, so a file
//! that was opened otherwise is not taken: [`io::ErrorKind::Unsupported`].
//!
//! **Secrets.** The standard library sets no access lists: the system's own `icacls` does, and where it
//! does not, nothing is kept there.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::windows::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::{Access, Identity, Refused, patiently};

const FILE_LIST_DIRECTORY: u32 = 0x1;
const FILE_READ_ATTRIBUTES: u32 = 0x80;
const SYNCHRONIZE: u32 = 0x0010_0000;
const SHARE_READ: u32 = 1;
const SHARE_WRITE: u32 = 2;
const SHARE_DELETE: u32 = 4;
/// FILE_FLAG_BACKUP_SEMANTICS: directories can be opened.
const ALSO_DIRECTORIES: u32 = 0x0200_0000;
/// FILE_FLAG_OPEN_REPARSE_POINT: the link itself, not what it leads to.
const NOT_FOLLOWED: u32 = 0x0020_0000;
/// FILE_ATTRIBUTE_REPARSE_POINT
const IS_REPARSE_POINT: u32 = 0x400;
const ERROR_SHARING_VIOLATION: i32 = 32;
const ERROR_LOCK_VIOLATION: i32 = 33;

/// An open directory that cannot be moved away, nor can any between it and the root it was opened from.
pub struct Dir {
    path: PathBuf,
    /// The directories from the root's down to this one.
    held: Vec<Arc<File>>,
}

impl Dir {
    /// Opens a directory by a path of the system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        // In the form `\\?\C:\...`, in which no name has a meaning of its own and none is cut.
        let path = fs::canonicalize(path)?;
        let dir = hold_dir(&path)?;
        if !dir.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self {
            path,
            held: vec![Arc::new(dir)],
        })
    }

    fn own(&self) -> io::Result<&File> {
        let last = self.held.last().map(|f| &**f);
        last.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Whether `path` still leads to this directory.
    pub fn is_at(&self, path: &Path) -> bool {
        let there = OpenOptions::new()
            .access_mode(0)
            .share_mode(SHARE_READ | SHARE_WRITE | SHARE_DELETE)
            .custom_flags(ALSO_DIRECTORIES)
            .open(path);
        there
            .and_then(|there| same_file(self.own()?, &there))
            .unwrap_or(false)
    }

    /// The directory at `path` beneath this one; `.` is itself.
    pub fn beneath(&self, path: &str) -> Result<Self, Refused> {
        let mut at = Self {
            path: self.path.clone(),
            held: self.held.clone(),
        };
        for name in path.split('/').filter(|name| *name != ".") {
            at.path = at.place(name)?;
            let dir = hold_dir(&at.path).map_err(refused)?;
            let meta = dir.metadata().map_err(Refused::Io)?;
            if meta.file_attributes() & IS_REPARSE_POINT != 0 {
                return Err(Refused::Outside);
            }
            if !meta.is_dir() {
                return Err(Refused::NotFound);
            }
            at.held.push(Arc::new(dir));
        }
        at.check_held()?;
        Ok(at)
    }

    /// None of the directories has become a link to elsewhere meanwhile. The root may be one: it was
    /// resolved when it was opened.
    fn check_held(&self) -> Result<(), Refused> {
        for dir in self.held.iter().skip(1) {
            let meta = dir.metadata().map_err(Refused::Io)?;
            if meta.file_attributes() & IS_REPARSE_POINT != 0 {
                return Err(Refused::Outside);
            }
        }
        Ok(())
    }

    /// The path of `name` here. What would lead elsewhere, or to another stream of a file, is refused.
    fn place(&self, name: &str) -> Result<PathBuf, Refused> {
        let means_more = |c: char| {
            c.is_control() || matches!(c, '<' | '>' | ':' | '"' | '/' | '\\' | '|' | '?' | '*')
        };
        // A name that other programs cannot open as it is written would be nobody's container.
        if name.is_empty() || name.contains(means_more) || name.ends_with(['.', ' ']) {
            return Err(Refused::Outside);
        }
        Ok(self.path.join(name))
    }

    fn place_of(&self, name: &str) -> io::Result<PathBuf> {
        self.place(name)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is no name")))
    }

    /// Opens what is named `name` here. A directory may be opened too: the caller looks at what it got.
    pub fn open_file(&self, name: &str, access: Access) -> Result<File, Refused> {
        let path = self.place(name)?;
        let mut options = OpenOptions::new();
        options
            .read(true)
            .custom_flags(ALSO_DIRECTORIES | NOT_FOLLOWED);
        match access {
            Access::Read => options.share_mode(SHARE_READ | SHARE_WRITE | SHARE_DELETE),
            Access::Alone => options.write(true).share_mode(0),
        };
        let file = patiently(|| options.open(&path)).map_err(refused)?;
        let meta = file.metadata().map_err(Refused::Io)?;
        if meta.file_attributes() & IS_REPARSE_POINT != 0 {
            return Err(Refused::Outside);
        }
        self.check_held()?;
        Ok(file)
    }

    /// Whether what is named `name` is a regular file; `None` where there is nothing. Links are not
    /// followed.
    pub fn is_regular(&self, name: &str) -> io::Result<Option<bool>> {
        match fs::symlink_metadata(self.place_of(name)?) {
            Ok(meta) => Ok(Some(
                meta.is_file() && meta.file_attributes() & IS_REPARSE_POINT == 0,
            )),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether `name` here still stands for `file`.
    pub fn names(&self, name: &str, file: &File) -> io::Result<bool> {
        // No access is asked for but to its attributes, so nobody's share mode forbids it, ours neither.
        let there = OpenOptions::new()
            .access_mode(0)
            .share_mode(SHARE_READ | SHARE_WRITE | SHARE_DELETE)
            .custom_flags(ALSO_DIRECTORIES | NOT_FOLLOWED)
            .open(self.place_of(name)?);
        match there {
            Ok(there) => same_file(file, &there),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.place_of(name)?)
    }

    /// Makes an empty file that must not exist. Who may read this directory's files by what they inherit
    /// may read it.
    pub fn create_private(&self, name: &str) -> io::Result<()> {
        File::create_new(self.place_of(name)?).map(drop)
    }

    /// Renames to a name that must be free: else [`io::ErrorKind::AlreadyExists`].
    pub fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.place_of(from)?, self.place_of(to)?);
        // A rename replaces. So the name is made ours first, and what is replaced is that.
        drop(File::create_new(&to)?);
        fs::rename(from, &to).inspect_err(|_| {
            let _ = fs::remove_file(&to);
        })
    }

    /// Names here are durable as far as NTFS sees to it: there is no flush of a directory.
    pub fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    /// A path to `name` that leads through this directory while it is open.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Opens a directory (or a link) so that it keeps its name. The right to list it is what makes the missing
/// right of others to delete it count.
fn hold_dir(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .access_mode(FILE_LIST_DIRECTORY | FILE_READ_ATTRIBUTES | SYNCHRONIZE)
        .share_mode(SHARE_READ | SHARE_WRITE)
        .custom_flags(ALSO_DIRECTORIES | NOT_FOLLOWED)
        .open(path)
}

fn same_file(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (identity(a)?, identity(b)?);
    Ok((a.file_id, a.device) == (b.file_id, b.device))
}

fn refused(error: io::Error) -> Refused {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Refused::NotFound,
        io::ErrorKind::IsADirectory => Refused::IsDirectory,
        _ => Refused::Io(error),
    }
}

/// Whether another program's use of the file is what `error` is about.
pub fn is_in_use(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(ERROR_SHARING_VIOLATION | ERROR_LOCK_VIOLATION)
    ) || matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy
    )
}

/// What the system says of an open file. The index is the file's own on NTFS; on ReFS it is half of a longer
/// one.
pub fn identity(file: &File) -> io::Result<Identity> {
    /// 1970 in units of 100 ns since 1601.
    const EPOCH: i128 = 116_444_736_000_000_000;
    let info = winapi_util::file::information(file)?;
    let written = i128::from(file.metadata()?.last_write_time());
    Ok(Identity {
        changed_ns: i64::try_from((written - EPOCH) * 100).unwrap_or(0),
        file_id: info.file_index(),
        device: info.volume_serial_number(),
    })
}

/// Bytes free where `file`, which lies in `dir`, is.
pub fn available(_file: &File, dir: &Dir) -> io::Result<u64> {
    fs2::available_space(&dir.path)
}

/// Nothing is reserved: room is had here only by making the file longer, which the container's readers would
/// see. The writes themselves find out, as on those file systems of Linux that cannot.
pub fn reserve(_file: &File, _at: u64, _len: u64) -> io::Result<()> {
    Ok(())
}

/// Nothing is forgotten: what is read back after a flush may come from the system's memory.
pub fn forget_cached(_file: &File, _at: u64, _len: u64) {}

/// This machine's name; empty where it has none.
pub fn hostname() -> String {
    let kind = winapi_util::sysinfo::ComputerNameKind::PhysicalDnsHostname;
    winapi_util::sysinfo::get_computer_name(kind)
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Makes `dir` and closes it to other users. `ours` tells whether one that is not empty is the agent's own;
/// `Ok(false)`: it is not, and was left as it is.
pub fn private_dir(dir: &Path, ours: impl FnOnce() -> bool) -> io::Result<bool> {
    fs::create_dir_all(dir)?;
    if fs::read_dir(dir)?.next().is_some() && !ours() {
        return Ok(false);
    }
    // Nothing inherited; the owner, the system and its administrators, by numbers that are the same in
    // every language. What is made within inherits it.
    let answer = Command::new("icacls.exe")
        .arg(dir)
        .args(["/inheritance:r", "/grant:r"])
        .args([
            "*S-1-3-4:(OI)(CI)F",
            "*S-1-5-18:(OI)(CI)F",
            "*S-1-5-32-544:(OI)(CI)F",
        ])
        .args(["/q"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let message = match answer {
        Ok(status) if status.success() => return Ok(true),
        Ok(status) => format!("icacls ended with {status}"),
        Err(e) => format!("icacls: {e}"),
    };
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        format!("it cannot be closed to other users: {message}"),
    ))
}

/// Files inherit who may read them from the directory that [`private_dir`] closed.
pub fn private_file(options: &mut OpenOptions) -> &mut OpenOptions {
    options
}

/// Names are durable as far as NTFS sees to it: there is no flush of a directory.
pub fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

/// A file that was opened to be had alone is so already. Any other cannot be taken any more.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] for a file that was not.
pub fn take_alone(_file: &File, opened: Access) -> io::Result<()> {
    match opened {
        Access::Alone => Ok(()),
        Access::Read => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "on Windows a file is had alone from its opening on or not at all",
        )),
    }
}

/// Nobody can have opened it since: they were refused.
pub fn still_alone(_file: &File) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_opened_alone_is_refused_to_others_and_one_that_is_open_is_refused_to_us() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("box.pst");
        fs::write(&path, b"mail").unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let other = File::open(&path).unwrap();
        match dir.open_file("box.pst", Access::Alone) {
            Err(Refused::Io(e)) => assert!(is_in_use(&e), "{e}"),
            other => panic!("{:?}", other.map(drop)),
        }
        drop(other);
        let ours = dir.open_file("box.pst", Access::Alone).unwrap();
        assert!(is_in_use(&File::open(&path).unwrap_err()));
        assert!(dir.names("box.pst", &ours).unwrap());
        assert!(fs::rename(&path, temp.path().join("other")).is_err());
        drop(ours);
        drop(File::open(&path).unwrap());
    }

    #[test]
    fn names_that_mean_more_here_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("box.pst"), b"mail").unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        for name in [
            "box.pst:stream",
            "..",
            "box.pst.",
            "box.pst ",
            "",
            "a\\b",
            "box.ps?",
        ] {
            assert!(
                matches!(dir.open_file(name, Access::Read), Err(Refused::Outside)),
                "{name}"
            );
        }
    }

    #[test]
    fn a_directory_on_the_way_keeps_its_name() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("a/b")).unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let inner = dir.beneath("a/b").unwrap();
        assert!(fs::rename(temp.path().join("a"), temp.path().join("x")).is_err());
        drop(inner);
        fs::rename(temp.path().join("a"), temp.path().join("x")).unwrap();
    }
}
