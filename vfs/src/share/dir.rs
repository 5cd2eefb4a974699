//! A directory as a share: a mounted network share, or an external drive.
//!
//! Paths are resolved beneath the root by the kernel (`openat2` with `RESOLVE_BENEATH` and no
//! symbolic links) or, where that call is missing, one component at a time with `O_NOFOLLOW`; a
//! link planted on the share leads nowhere outside it. Before each call by path the root is
//! checked to be still the directory that was opened, so that an unmounted share is "gone", not
//! "empty" (R3).

mod beneath;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid};

use self::beneath::{PATH_ONLY, beneath, chmod_unopened, for_xattr};
use super::{Attr, Entry, Kind, SetAttr, Share, ShareFile, Special, Statfs};
use crate::path::{Names, split};

/// A share that is a local directory.
pub struct DirShare {
    root: PathBuf,
    names: Names,
    open: Mutex<Root>,
}

#[derive(Clone)]
struct Root {
    fd: Arc<OwnedFd>,
    dev: u64,
    ino: u64,
}

impl DirShare {
    /// Uses `root` as the share.
    ///
    /// # Errors
    /// When it cannot be opened as a directory.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        let open = Root::open(&root)?;
        Ok(Self {
            root,
            names: names_of(&open.fd),
            open: Mutex::new(open),
        })
    }

    /// The directory that is the share.
    #[must_use]
    pub fn root_path(&self) -> &Path {
        &self.root
    }

    fn gone(&self, what: &str) -> io::Error {
        io::Error::new(
            io::ErrorKind::NotConnected,
            format!("the share's directory {} {what}", self.root.display()),
        )
    }

    /// The root, after checking that its path still leads to it.
    fn root(&self) -> io::Result<Arc<OwnedFd>> {
        let root = self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match std::fs::metadata(&self.root) {
            Ok(m) if (m.dev(), m.ino()) == (root.dev, root.ino) => Ok(root.fd),
            Ok(_) => Err(self.gone("is not the one that was opened")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(self.gone("is gone")),
            Err(e) => Err(e),
        }
    }

    /// The directory that holds `path`, and the last name. The root itself is (root, ".").
    fn parent<'a>(&self, path: &'a str) -> io::Result<(Arc<OwnedFd>, &'a str)> {
        let root = self.root()?;
        match split(path) {
            None => Ok((root, ".")),
            // The last name is not resolved beneath the root.
            Some((_, "." | "..")) => Err(io::ErrorKind::InvalidInput.into()),
            Some(("", name)) => Ok((root, name)),
            Some((dir, name)) => {
                let fd = beneath(&root, dir, OFlags::DIRECTORY | PATH_ONLY)?;
                Ok((Arc::new(fd), name))
            }
        }
    }
}

/// File systems of Windows, and shares served by it or for it, hold no names that Windows cannot.
#[cfg(target_os = "linux")]
fn names_of(root: &OwnedFd) -> Names {
    /// From statfs(2): FAT, exFAT, NTFS (in the kernel and by FUSE's own number), CIFS, SMB2, SMB.
    const WINDOWS: [u32; 7] = [
        0x4d44,
        0x2011_BAB0,
        0x5346_544e,
        0x7366_746e,
        0xFF53_4D42,
        0xFE53_4D42,
        0x517B,
    ];
    match rustix::fs::fstatfs(root) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 32 bits of meaning.
        Ok(st) if WINDOWS.contains(&(st.f_type as u32)) => Names::Windows,
        _ => Names::Any,
    }
}

#[cfg(not(target_os = "linux"))]
fn names_of(_: &OwnedFd) -> Names {
    Names::Any
}

/// Gives what was just made its mode: the process's own umask is not the application's.
fn exact_mode(fd: impl AsFd, mode: Mode) -> io::Result<()> {
    let st = rustix::fs::fstat(&fd)?;
    if Mode::from_raw_mode(st.st_mode) == mode {
        return Ok(());
    }
    match rustix::fs::fchmod(&fd, mode) {
        // A share without modes keeps its own.
        Err(rustix::io::Errno::PERM | rustix::io::Errno::NOTSUP) => Ok(()),
        other => Ok(other?),
    }
}

/// Only these attributes are carried: others mean something to the system that has them.
const USER: &str = "user.";

impl Root {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let st = rustix::fs::fstat(&fd)?;
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)] // Widths differ by platform.
        Ok(Self {
            fd: Arc::new(fd),
            dev: st.st_dev as u64,
            ino: st.st_ino as u64,
        })
    }
}

/// Major and minor number of a device.
fn device(st: &rustix::fs::Stat) -> (u32, u32) {
    #[cfg(target_os = "linux")]
    return (rustix::fs::major(st.st_rdev), rustix::fs::minor(st.st_rdev));
    #[cfg(not(target_os = "linux"))]
    return ((st.st_rdev as u32) >> 24, (st.st_rdev as u32) & 0x00FF_FFFF);
}

#[allow(clippy::unnecessary_cast, clippy::cast_lossless)] // Widths differ by platform.
fn attr_of(st: &rustix::fs::Stat) -> io::Result<Attr> {
    let nanos = |s: i64, n: i64| s.saturating_mul(1_000_000_000).saturating_add(n);
    let (major, minor) = device(st);
    let kind = match FileType::from_raw_mode(st.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Special(Special::Fifo),
        FileType::Socket => Kind::Special(Special::Socket),
        FileType::CharacterDevice => Kind::Special(Special::Char(major, minor)),
        FileType::BlockDevice => Kind::Special(Special::Block(major, minor)),
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    Ok(Attr {
        kind,
        size: u64::try_from(st.st_size).unwrap_or(0),
        mtime: nanos(st.st_mtime as i64, st.st_mtime_nsec as i64),
        atime: nanos(st.st_atime as i64, st.st_atime_nsec as i64),
        ctime: nanos(st.st_ctime as i64, st.st_ctime_nsec as i64),
        mode: st.st_mode as u32 & 0o7777,
        uid: st.st_uid,
        gid: st.st_gid,
        // Two volumes beneath one root may share inode numbers.
        file_id: (st.st_ino as u64) ^ (st.st_dev as u64).rotate_left(32),
    })
}

impl Share for DirShare {
    fn stat(&self, path: &str) -> io::Result<Attr> {
        let (dir, name) = self.parent(path)?;
        attr_of(&rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let root = self.root()?;
        let fd = beneath(&root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut out = Vec::new();
        for entry in rustix::fs::Dir::read_from(&fd)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if name == "." || name == ".." {
                continue;
            }
            match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(st) => {
                    if let Ok(attr) = attr_of(&st) {
                        out.push(Entry {
                            name: name.to_owned(),
                            attr,
                        });
                    }
                }
                // Removed between the two calls.
                Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
        // A share that went away during the listing shows as a short one.
        self.root()?;
        Ok(out)
    }

    fn read_link(&self, path: &str) -> io::Result<String> {
        let (dir, name) = self.parent(path)?;
        let target = rustix::fs::readlinkat(&dir, name, Vec::new())?;
        target
            .into_string()
            .map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn symlink(&self, path: &str, target: &str) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(rustix::fs::symlinkat(target, &dir, name)?)
    }

    /// File systems of Windows hold none.
    fn has_special(&self) -> bool {
        cfg!(target_os = "linux") && self.names == Names::Any
    }

    #[cfg(target_os = "linux")]
    fn make_special(&self, path: &str, what: Special, mode: u32) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let (kind, device) = match what {
            Special::Fifo => (FileType::Fifo, 0),
            Special::Socket => (FileType::Socket, 0),
            Special::Char(major, minor) => {
                (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
            }
            Special::Block(major, minor) => {
                (FileType::BlockDevice, rustix::fs::makedev(major, minor))
            }
        };
        let mode = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::mknodat(&dir, name, kind, mode, device)?;
        // The process's own umask is not the application's.
        let st = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if Mode::from_raw_mode(st.st_mode) == mode {
            return Ok(());
        }
        chmod_unopened(&*self.root()?, path, mode)
    }

    /// File systems of Windows have none that programs there would understand.
    fn has_links(&self) -> bool {
        self.names == Names::Any
    }

    fn link(&self, path: &str, to: &str) -> io::Result<()> {
        let (a, from) = self.parent(path)?;
        let (b, to) = self.parent(to)?;
        Ok(rustix::fs::linkat(&a, from, &b, to, AtFlags::empty())?)
    }

    fn list_xattr(&self, path: &str) -> io::Result<Vec<String>> {
        let Some(fd) = for_xattr(&*self.root()?, path)? else {
            return Ok(Vec::new());
        };
        // The kernel's own bound on a list, and on a value.
        let mut buf = vec![0; 1 << 16];
        let len = rustix::fs::flistxattr(&fd, &mut buf[..])?;
        let names = buf.get(..len).unwrap_or_default().split(|b| *b == 0);
        Ok(names
            .filter_map(|n| std::str::from_utf8(n).ok())
            .filter(|n| n.starts_with(USER))
            .map(str::to_owned)
            .collect())
    }

    fn get_xattr(&self, path: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(fd) = for_xattr(&*self.root()?, path)? else {
            return Ok(None);
        };
        let mut buf = vec![0; 1 << 16];
        match rustix::fs::fgetxattr(&fd, name, &mut buf[..]) {
            Ok(len) => {
                buf.truncate(len);
                Ok(Some(buf))
            }
            Err(rustix::io::Errno::NODATA) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn set_xattr(&self, path: &str, name: &str, value: Option<&[u8]>) -> io::Result<()> {
        let Some(fd) = for_xattr(&*self.root()?, path)? else {
            return Err(rustix::io::Errno::PERM.into());
        };
        match value {
            Some(v) => Ok(rustix::fs::fsetxattr(
                &fd,
                name,
                v,
                rustix::fs::XattrFlags::empty(),
            )?),
            None => match rustix::fs::fremovexattr(&fd, name) {
                Ok(()) | Err(rustix::io::Errno::NODATA) => Ok(()),
                Err(e) => Err(e.into()),
            },
        }
    }

    fn names(&self) -> Names {
        self.names
    }

    fn open(&self, path: &str, write: bool) -> io::Result<Box<dyn ShareFile>> {
        let root = self.root()?;
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        // NONBLOCK: opening a pipe that was put there must not hang; no effect on files.
        let fd = beneath(&root, path, access | OFlags::NONBLOCK)?;
        let file = DirFile(File::from(fd));
        match file.stat()?.kind {
            Kind::File => Ok(Box::new(file)),
            Kind::Dir => Err(io::ErrorKind::IsADirectory.into()),
            Kind::Symlink | Kind::Special(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn create(&self, path: &str, mode: u32) -> io::Result<Box<dyn ShareFile>> {
        let (dir, name) = self.parent(path)?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode((mode & 0o7777) as _);
        let fd = rustix::fs::openat(&dir, name, flags, mode)?;
        exact_mode(&fd, mode)?;
        Ok(Box::new(DirFile(File::from(fd))))
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        let (a, from) = self.parent(from)?;
        let (b, to) = self.parent(to)?;
        if !replace {
            match rustix::fs::renameat_with(&a, from, &b, to, RenameFlags::NOREPLACE) {
                // Not every mounted file system knows the flag.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                    if rustix::fs::statat(&b, to, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                        return Err(io::ErrorKind::AlreadyExists.into());
                    }
                }
                other => return Ok(other?),
            }
        }
        Ok(rustix::fs::renameat(&a, from, &b, to)?)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(&dir, name, AtFlags::empty())?)
    }

    fn mkdir(&self, path: &str, mode: u32) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let mode = Mode::from_raw_mode((mode & 0o7777) as _);
        // Until it has its own mode, nobody else may enter.
        rustix::fs::mkdirat(&dir, name, Mode::RWXU)?;
        let fd = beneath(&*self.root()?, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        exact_mode(&fd, mode)
    }

    fn rmdir(&self, path: &str) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)?)
    }

    fn set_attr(&self, path: &str, set: &SetAttr) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let link = AtFlags::SYMLINK_NOFOLLOW;
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
            rustix::fs::chownat(&dir, name, uid, gid, link)?;
        }
        if let Some(mode) = set.mode {
            // `chmod` without following links is missing on many kernels: open, then change.
            let root = self.root()?;
            let mode = Mode::from_raw_mode((mode & 0o7777) as _);
            let st = rustix::fs::statat(&dir, name, link)?;
            let opened = match FileType::from_raw_mode(st.st_mode) {
                FileType::RegularFile | FileType::Directory => {
                    beneath(&root, path, OFlags::RDONLY | OFlags::NONBLOCK).ok()
                }
                _ => None,
            };
            match opened {
                Some(fd) => rustix::fs::fchmod(&fd, mode)?,
                None => chmod_unopened(&root, path, mode)?,
            }
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let spec = |t: Option<i64>| match t {
                Some(t) => Timespec {
                    tv_sec: t.div_euclid(1_000_000_000),
                    tv_nsec: t.rem_euclid(1_000_000_000),
                },
                None => Timespec {
                    tv_sec: 0,
                    tv_nsec: rustix::fs::UTIME_OMIT,
                },
            };
            let times = Timestamps {
                last_access: spec(set.atime),
                last_modification: spec(set.mtime),
            };
            rustix::fs::utimensat(&dir, name, &times, link)?;
        }
        Ok(())
    }

    fn statfs(&self) -> io::Result<Statfs> {
        let st = rustix::fs::fstatvfs(self.root()?.as_fd())?;
        let unit = st.f_frsize.max(1);
        Ok(Statfs {
            total: st.f_blocks.saturating_mul(unit),
            available: st.f_bavail.saturating_mul(unit),
            files: st.f_files,
            files_free: st.f_ffree,
        })
    }

    fn probe(&self) -> io::Result<()> {
        if self.root().is_ok() {
            return Ok(());
        }
        // Mounted again, or another volume at the same place: only the same directory will do,
        // except that a remount may number it anew; then the root's own listing must work.
        let fresh = Root::open(&self.root)?;
        rustix::fs::Dir::read_from(&fresh.fd)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        *open = fresh;
        Ok(())
    }
}

struct DirFile(File);

impl ShareFile for DirFile {
    fn stat(&self) -> io::Result<Attr> {
        attr_of(&rustix::fs::fstat(&self.0)?)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            match self.0.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_do_not_lead_out() {
        let tmp = tempfile::tempdir().unwrap();
        let (root, out) = (tmp.path().join("root"), tmp.path().join("out"));
        std::fs::create_dir_all(root.join("d")).unwrap();
        std::fs::create_dir_all(&out).unwrap();
        std::fs::write(out.join("secret"), b"s").unwrap();
        std::os::unix::fs::symlink(out.join("secret"), root.join("leak")).unwrap();
        std::os::unix::fs::symlink(&out, root.join("dirleak")).unwrap();
        let share = DirShare::open(&root).unwrap();
        assert!(share.open("leak", false).is_err());
        assert!(share.open("dirleak/secret", false).is_err());
        assert!(share.stat("dirleak/secret").is_err());
        assert!(share.create("dirleak/new", 0o600).is_err());
        assert!(share.unlink("dirleak/secret").is_err());
        assert!(share.list("dirleak").is_err());
        assert_eq!(share.stat("leak").unwrap().kind, Kind::Symlink);
        assert!(out.join("secret").exists() && !out.join("new").exists());
        // The fallback for kernels without openat2 refuses the same.
        let fd = share.root().unwrap();
        for path in ["leak", "dirleak/secret"] {
            assert!(beneath::walk(&fd, path, OFlags::RDONLY | OFlags::NOFOLLOW).is_err());
        }
    }

    #[test]
    fn a_missing_root_is_a_dead_link_not_an_empty_share() {
        let tmp = tempfile::tempdir().unwrap();
        let (root, away) = (tmp.path().join("root"), tmp.path().join("away"));
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("f"), b"x").unwrap();
        let share = DirShare::open(&root).unwrap();
        std::fs::rename(&root, &away).unwrap();
        let e = share.stat("f").unwrap_err();
        assert!(crate::error::is_link_error(&e), "{e}");
        // An empty mountpoint in its place is not the share either.
        std::fs::create_dir(&root).unwrap();
        assert!(crate::error::is_link_error(&share.list("").unwrap_err()));
        std::fs::remove_dir(&root).unwrap();
        assert!(share.probe().is_err());
        std::fs::rename(&away, &root).unwrap();
        share.probe().unwrap();
        assert_eq!(share.list("").unwrap().len(), 1);
    }

    #[test]
    fn files_round_trip() {
        let tmp = tempfile::tempdir().unwrap();
        let share = DirShare::open(tmp.path()).unwrap();
        share.mkdir("d", 0o755).unwrap();
        let f = share.create("d/a", 0o640).unwrap();
        f.write_all_at(3, b"abc").unwrap();
        assert!(share.create("d/a", 0o640).is_err());
        assert!(share.rename("d/a", "d/a", false).is_err() || share.stat("d/a").is_ok());
        let before = share.stamp("d/a").unwrap();
        f.write_all_at(0, b"zzz").unwrap();
        assert_ne!(before, share.stamp("d/a").unwrap());
        share
            .set_attr(
                "d/a",
                &SetAttr {
                    mtime: Some(5_000_000_001),
                    ..SetAttr::default()
                },
            )
            .unwrap();
        assert_eq!(share.stat("d/a").unwrap().mtime, 5_000_000_001);
        share.create("d/b", 0o600).unwrap();
        let e = share.rename("d/a", "d/b", false).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
        share.rename("d/a", "d/b", true).unwrap();
        let mut buf = [0; 8];
        let n = share
            .open("d/b", false)
            .unwrap()
            .read_at(0, &mut buf)
            .unwrap();
        assert_eq!(buf.get(..n), Some(&b"zzzabc"[..]));
        assert!(share.rmdir("d").is_err());
        share.unlink("d/b").unwrap();
        share.rmdir("d").unwrap();
        assert!(share.list("").unwrap().is_empty());
    }
}
