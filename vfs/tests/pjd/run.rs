//! A small language for file system calls, so that a case reads as what it does.
//!
//! `== TITLE` begins a case in an empty directory of mode 0777. Every other line is a call, by
//! root or, with `@UID:GID[,GROUP...]` before it, by someone else; what it answers is `ok`, the
//! name of the error, or values. `~ ANSWER` at the end of a line: there the drive answers so
//! whatever the native file system says (each with a reason in the case's comment). `{N}` in a name
//! stands for N letters.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};
use rustix::io::Errno;

/// One call of one case, and its answer.
#[derive(Debug)]
pub struct Answer {
    pub case: String,
    pub line: String,
    pub said: String,
    /// What the drive is to say, where that is not what the native file system says.
    pub own: Option<String>,
}

struct Case<'a> {
    root: PathBuf,
    held: HashMap<&'a str, File>,
    marks: HashMap<&'a str, std::fs::Metadata>,
}

/// Runs a script below `root`, case by case.
pub fn run(script: &str, root: &Path) -> Vec<Answer> {
    let mut out = Vec::new();
    let mut case: Option<(String, Case<'_>)> = None;
    for line in script.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(title) = line.strip_prefix("== ") {
            let dir = root.join(title.replace([' ', '/', ','], "-"));
            std::fs::create_dir(&dir).unwrap();
            rustix::fs::chmod(&dir, Mode::from_raw_mode(0o777)).unwrap();
            let fresh = Case {
                root: dir,
                held: HashMap::new(),
                marks: HashMap::new(),
            };
            case = Some((title.to_owned(), fresh));
            continue;
        }
        let (title, case) = case.as_mut().unwrap();
        let (call, own) = match line.split_once(" ~ ") {
            Some((call, own)) => (call.trim(), Some(own.trim().to_owned())),
            None => (line, None),
        };
        let said = case.line(call);
        out.push(Answer {
            case: title.clone(),
            line: call.to_owned(),
            said,
            own,
        });
    }
    out
}

fn name_of(e: Errno) -> String {
    let known = [
        (Errno::PERM, "EPERM"),
        (Errno::NOENT, "ENOENT"),
        (Errno::ACCESS, "EACCES"),
        (Errno::EXIST, "EEXIST"),
        (Errno::NOTDIR, "ENOTDIR"),
        (Errno::ISDIR, "EISDIR"),
        (Errno::INVAL, "EINVAL"),
        (Errno::NOTEMPTY, "ENOTEMPTY"),
        (Errno::NAMETOOLONG, "ENAMETOOLONG"),
        (Errno::LOOP, "ELOOP"),
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
        (Errno::NODATA, "ENODATA"),
        (Errno::BADF, "EBADF"),
        (Errno::NXIO, "ENXIO"),
        (Errno::FBIG, "EFBIG"),
        (Errno::TXTBSY, "ETXTBSY"),
        (Errno::BUSY, "EBUSY"),
    ];
    let found = known.iter().find(|(k, _)| *k == e);
    found.map_or_else(|| format!("errno {e:?}"), |(_, n)| (*n).to_owned())
}

fn say(done: rustix::io::Result<()>) -> String {
    done.map_or_else(name_of, |()| "ok".to_owned())
}

fn octal(s: &str) -> Mode {
    Mode::from_raw_mode(u32::from_str_radix(s, 8).unwrap())
}

fn flags(s: &str) -> OFlags {
    let mut all = OFlags::empty();
    for f in s.split('|') {
        all |= match f {
            "r" => OFlags::RDONLY,
            "w" => OFlags::WRONLY,
            "rw" => OFlags::RDWR,
            "creat" => OFlags::CREATE,
            "excl" => OFlags::EXCL,
            "trunc" => OFlags::TRUNC,
            "append" => OFlags::APPEND,
            "nofollow" => OFlags::NOFOLLOW,
            "dir" => OFlags::DIRECTORY,
            other => panic!("flag {other}"),
        };
    }
    all
}

fn io(e: std::io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap_or(Errno::IO)
}

fn time(s: &str) -> Timespec {
    let (tv_sec, tv_nsec) = match s {
        "now" => (0, UTIME_NOW),
        "omit" => (0, UTIME_OMIT),
        n => match n.split_once('.') {
            Some((s, ns)) => (s.parse().unwrap(), ns.parse().unwrap()),
            None => (n.parse().unwrap(), 0),
        },
    };
    Timespec { tv_sec, tv_nsec }
}

/// Runs `work` on a thread that is somebody else.
fn as_user<T: Send>(who: &str, work: impl FnOnce() -> T + Send) -> T {
    let (uid, groups) = who.split_once(':').unwrap();
    let groups: Vec<Gid> = groups
        .split(',')
        .map(|g| Gid::from_raw(g.parse().unwrap()))
        .collect();
    let uid = Uid::from_raw(uid.parse().unwrap());
    std::thread::scope(|s| {
        s.spawn(move || {
            rustix::thread::set_thread_groups(&groups[1..]).unwrap();
            rustix::thread::set_thread_res_gid(groups[0], groups[0], groups[0]).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            work()
        })
        .join()
        .unwrap()
    })
}

impl<'a> Case<'a> {
    fn path(&self, name: &str) -> PathBuf {
        let mut full = String::new();
        let mut rest = name;
        while let Some((before, after)) = rest.split_once('{') {
            let (n, tail) = after.split_once('}').unwrap();
            full.push_str(before);
            full.push_str(&"x".repeat(n.parse().unwrap()));
            rest = tail;
        }
        full.push_str(rest);
        // An empty path stays one.
        if full.is_empty() {
            return PathBuf::new();
        }
        let mut path = self.root.clone().into_os_string();
        path.push("/");
        path.push(full);
        path.into()
    }

    fn line(&mut self, line: &'a str) -> String {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        if let Some(who) = first.strip_prefix('@') {
            let call = line[first.len()..].trim_start();
            let this = &mut *self;
            return as_user(who, move || this.line(call));
        }
        let args: Vec<&'a str> = words.collect();
        let at = |i: usize| {
            *args
                .get(i)
                .unwrap_or_else(|| panic!("{line}: argument {i}"))
        };
        let here = |i: usize| self.path(at(i));
        match first {
            "create" => say(self.open(at(0), "w|creat|excl", at(1)).map(drop)),
            "open" => {
                let mode = args.get(2).copied().unwrap_or("0");
                say(self.open(at(0), at(1), mode).map(drop))
            }
            "mkdir" => say(rustix::fs::mkdir(here(0), octal(at(1)))),
            "rmdir" => say(rustix::fs::rmdir(here(0))),
            "unlink" => say(rustix::fs::unlink(here(0))),
            "unlinkdir" => say(rustix::fs::unlinkat(CWD, here(0), AtFlags::REMOVEDIR)),
            "rename" => say(rustix::fs::rename(here(0), here(1))),
            "renameas" => {
                let how = match at(2) {
                    "noreplace" => RenameFlags::NOREPLACE,
                    _ => RenameFlags::EXCHANGE,
                };
                say(rustix::fs::renameat_with(CWD, here(0), CWD, here(1), how))
            }
            "link" => say(rustix::fs::link(here(0), here(1))),
            "symlink" => {
                let target = self.path(at(0));
                let target = target.strip_prefix(&self.root).unwrap().to_owned();
                say(rustix::fs::symlink(target, here(1)))
            }
            "symlinkout" => say(rustix::fs::symlink(at(0), here(1))),
            "readlink" => match rustix::fs::readlink(here(0), Vec::new()) {
                Ok(t) => t.into_string().unwrap(),
                Err(e) => name_of(e),
            },
            "chmod" => say(rustix::fs::chmod(here(0), octal(at(1)))),
            "chown" | "lchown" => {
                let how = if first == "chown" {
                    AtFlags::empty()
                } else {
                    AtFlags::SYMLINK_NOFOLLOW
                };
                let id = |s: &str| (s != "-1").then(|| s.parse().unwrap());
                let (uid, gid) = (id(at(1)).map(Uid::from_raw), id(at(2)).map(Gid::from_raw));
                say(rustix::fs::chownat(CWD, here(0), uid, gid, how))
            }
            "truncate" => {
                // truncate(2) by name: nobody needs to hold it open.
                let open = rustix::fs::open(here(0), OFlags::WRONLY, Mode::empty());
                let cut = |f| rustix::fs::ftruncate(f, at(1).parse().unwrap());
                say(open.and_then(cut))
            }
            "utimens" | "lutimens" => {
                let times = Timestamps {
                    last_access: time(at(1)),
                    last_modification: time(at(2)),
                };
                let how = if first == "utimens" {
                    AtFlags::empty()
                } else {
                    AtFlags::SYMLINK_NOFOLLOW
                };
                say(rustix::fs::utimensat(CWD, here(0), &times, how))
            }
            "mknod" => {
                use rustix::fs::FileType as T;
                let kind = match at(1) {
                    "fifo" => T::Fifo,
                    "sock" => T::Socket,
                    "char" => T::CharacterDevice,
                    "block" => T::BlockDevice,
                    _ => T::RegularFile,
                };
                let dev = rustix::fs::makedev(1, 3);
                say(rustix::fs::mknodat(CWD, here(0), kind, octal(at(2)), dev))
            }
            "stat" | "lstat" => {
                let meta = if first == "stat" {
                    std::fs::metadata(here(0))
                } else {
                    std::fs::symlink_metadata(here(0))
                };
                meta.map_or_else(|e| name_of(io(e)), |m| fields(&m, at(1)))
            }
            "access" => {
                let how = at(1).chars().fold(rustix::fs::Access::EXISTS, |a, c| {
                    a | match c {
                        'r' => rustix::fs::Access::READ_OK,
                        'w' => rustix::fs::Access::WRITE_OK,
                        _ => rustix::fs::Access::EXEC_OK,
                    }
                });
                say(rustix::fs::accessat(CWD, here(0), how, AtFlags::EACCESS))
            }
            "ls" => match std::fs::read_dir(here(0)) {
                Ok(all) => {
                    let mut names: Vec<String> = all
                        .map(|e| e.unwrap().file_name().into_string().unwrap())
                        .collect();
                    names.sort();
                    names.join(" ")
                }
                Err(e) => name_of(io(e)),
            },
            "read" => match std::fs::read(here(0)) {
                Ok(data) => String::from_utf8_lossy(&data).replace('\0', "0"),
                Err(e) => name_of(io(e)),
            },
            "write" => match self.open(at(0), "w|creat|trunc", "644") {
                Ok(mut f) => say(f.write_all(at(1).as_bytes()).map_err(io)),
                Err(e) => name_of(e),
            },
            "append" => match self.open(at(0), "w|append", "0") {
                Ok(mut f) => say(f.write_all(at(1).as_bytes()).map_err(io)),
                Err(e) => name_of(e),
            },
            "hold" => match self.open(at(1), at(2), "644") {
                Ok(f) => {
                    self.held.insert(at(0), f);
                    "ok".to_owned()
                }
                Err(e) => name_of(e),
            },
            "drop" => {
                self.held.remove(at(0));
                "ok".to_owned()
            }
            "fstat" => fields(&self.held[at(0)].metadata().unwrap(), at(1)),
            "fwrite" => {
                let done = self.held[at(0)].write_all_at(at(2).as_bytes(), at(1).parse().unwrap());
                say(done.map_err(io))
            }
            "fread" => {
                let mut text = String::new();
                let mut f = &self.held[at(0)];
                rustix::fs::seek(f, rustix::fs::SeekFrom::Start(0)).unwrap();
                match f.read_to_string(&mut text) {
                    Ok(_) => text.replace('\0', "0"),
                    Err(e) => name_of(io(e)),
                }
            }
            "ftruncate" => say(rustix::fs::ftruncate(
                &self.held[at(0)],
                at(1).parse().unwrap(),
            )),
            "fchmod" => say(rustix::fs::fchmod(&self.held[at(0)], octal(at(1)))),
            "fallocate" => {
                use rustix::fs::FallocateFlags as F;
                let how = match at(3) {
                    "keep" => F::KEEP_SIZE,
                    "punch" => F::PUNCH_HOLE | F::KEEP_SIZE,
                    "zero" => F::ZERO_RANGE,
                    _ => F::empty(),
                };
                let (from, len) = (at(1).parse().unwrap(), at(2).parse().unwrap());
                say(rustix::fs::fallocate(&self.held[at(0)], how, from, len))
            }
            "setxattr" => say(rustix::fs::setxattr(
                here(0),
                at(1),
                at(2).as_bytes(),
                match args.get(3) {
                    Some(&"create") => rustix::fs::XattrFlags::CREATE,
                    Some(_) => rustix::fs::XattrFlags::REPLACE,
                    None => rustix::fs::XattrFlags::empty(),
                },
            )),
            "getxattr" => {
                let mut buf = [0; 256];
                match rustix::fs::getxattr(here(0), at(1), &mut buf[..]) {
                    Ok(n) => String::from_utf8_lossy(&buf[..n]).into_owned(),
                    Err(e) => name_of(e),
                }
            }
            "listxattr" => {
                let mut buf = [0; 1024];
                match rustix::fs::listxattr(here(0), &mut buf[..]) {
                    Ok(n) => {
                        let all = String::from_utf8_lossy(&buf[..n]).into_owned();
                        let mut names: Vec<&str> =
                            all.split('\0').filter(|n| n.starts_with("user.")).collect();
                        names.sort_unstable();
                        names.join(" ")
                    }
                    Err(e) => name_of(e),
                }
            }
            "removexattr" => say(rustix::fs::removexattr(here(0), at(1))),
            // Times are kept in ticks of a few milliseconds.
            "mark" => {
                let meta = std::fs::symlink_metadata(here(0)).unwrap();
                self.marks.insert(at(0), meta);
                std::thread::sleep(std::time::Duration::from_millis(15));
                "ok".to_owned()
            }
            // Which times are later than at the mark.
            "since" => {
                let (was, is) = (
                    &self.marks[at(0)],
                    std::fs::symlink_metadata(here(args.len() - 1)).unwrap(),
                );
                let later = |a: (i64, i64), b: (i64, i64)| if b > a { "later" } else { "same" };
                format!(
                    "mtime {} ctime {}",
                    later(
                        (was.mtime(), was.mtime_nsec()),
                        (is.mtime(), is.mtime_nsec())
                    ),
                    later(
                        (was.ctime(), was.ctime_nsec()),
                        (is.ctime(), is.ctime_nsec())
                    ),
                )
            }
            other => panic!("no such call: {other}"),
        }
    }

    fn open(&self, name: &str, how: &str, mode: &str) -> rustix::io::Result<File> {
        let fd = rustix::fs::open(self.path(name), flags(how) | OFlags::CLOEXEC, octal(mode))?;
        Ok(File::from(fd))
    }
}

fn fields(m: &std::fs::Metadata, which: &str) -> String {
    let one = |f: &str| match f {
        "type" => format!("{:o}", m.mode() >> 12),
        "mode" => format!("{:o}", m.mode() & 0o7777),
        "uid" => m.uid().to_string(),
        "gid" => m.gid().to_string(),
        "size" => m.size().to_string(),
        "nlink" => m.nlink().to_string(),
        "atime" => format!("{}.{}", m.atime(), m.atime_nsec()),
        "mtime" => format!("{}.{}", m.mtime(), m.mtime_nsec()),
        other => panic!("field {other}"),
    };
    which.split(',').map(one).collect::<Vec<_>>().join(" ")
}
