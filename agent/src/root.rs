//! Opening containers beneath the root, and nowhere else.
//!
//! Paths are resolved by the system beneath the directory that was opened, through no link, so that no
//! rename can make one lead elsewhere (see [`platform`]). Files are then handled
//! relative to the directory they were found in.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use sync::wire::{self, ErrorCode, REDO_SUFFIX};

use crate::error::{AgentError, Fault};
use crate::platform::{self, Access, Dir, Refused};

/// The directory whose containers are served.
pub struct Root {
    dir: Dir,
    path: PathBuf,
}

/// A container that was found: its open file and the directory it lies in.
pub struct Place {
    /// The open file.
    pub file: File,
    /// Path beneath the root, as the client wrote it.
    pub path: String,
    /// How the file was opened.
    pub access: Access,
    dir: Dir,
    name: String,
}

impl Root {
    /// Opens the root.
    pub fn open(path: &Path) -> Result<Self, AgentError> {
        let fail = |source: io::Error| AgentError::Root {
            path: path.to_owned(),
            source,
        };
        let dir = Dir::open(path).map_err(fail)?;
        // A directory that may be opened but not listed would hide redo sidecars.
        std::fs::read_dir(path).map_err(fail)?;
        Ok(Self {
            dir,
            path: path.to_owned(),
        })
    }

    /// Opens a container.
    ///
    /// Hardly waits: where another program keeps the file to itself, the answer is
    /// [`ErrorCode::InUse`] after half a second.
    pub fn container(&self, path: &str, access: Access) -> Result<Place, Fault> {
        wire::check_path(path)
            .map_err(|e| Fault::new(ErrorCode::BadPath, format!("{path}: {e}")))?;
        self.check_in_place()?;
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let dir = self.dir.beneath(parent).map_err(|e| refused(path, e))?;
        let file = dir.open_file(name, access).map_err(|e| refused(path, e))?;
        if !file.metadata().map_err(|e| Fault::io(path, &e))?.is_file() {
            let message = format!("{path} is not a regular file");
            return Err(Fault::new(ErrorCode::NotAContainer, message));
        }
        Ok(Place {
            file,
            path: path.to_owned(),
            access,
            dir,
            name: name.to_owned(),
        })
    }

    /// Refuses to work on a directory that was moved away or mounted over since it was opened:
    /// nobody would find there what is called synced.
    fn check_in_place(&self) -> Result<(), Fault> {
        if self.dir.is_at(&self.path) {
            return Ok(());
        }
        let message = format!(
            "{} is not the directory any more that it was at the start",
            self.path.display()
        );
        let mut fault = Fault::new(ErrorCode::Storage, message);
        fault.next = "put it back, or start again with the right one";
        Err(fault)
    }

    /// Paths of all containers with a redo sidecar beside them. What cannot be read is logged and
    /// passed over: its sidecars are found when the container is next asked for.
    pub fn unfinished(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut todo = vec![(String::new(), 0u32)];
        while let Some((dir, depth)) = todo.pop() {
            let listed = match std::fs::read_dir(self.path.join(&dir)) {
                Ok(listed) => listed,
                Err(error) => {
                    tracing::warn!(dir, %error, "not searched for unfinished changes");
                    continue;
                }
            };
            for entry in listed.flatten() {
                let Ok(name) = entry.file_name().into_string() else {
                    continue;
                };
                let path = if dir.is_empty() {
                    name
                } else {
                    format!("{dir}/{name}")
                };
                // `file_type` does not follow symbolic links.
                let Ok(kind) = entry.file_type() else {
                    continue;
                };
                if kind.is_dir() && depth < MAX_DEPTH {
                    todo.push((path, depth + 1));
                } else if kind.is_file() {
                    let log = path.strip_suffix(".tmp").unwrap_or(&path);
                    if let Some(container) = log.strip_suffix(REDO_SUFFIX) {
                        found.push(container.to_owned());
                    }
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }
}

const MAX_DEPTH: u32 = 64;

impl Place {
    /// Where the redo sidecar goes. It leads through the directory that was opened, whatever its
    /// name is by now.
    pub fn sidecar(&self) -> PathBuf {
        self.dir.path_of(&format!("{}{REDO_SUFFIX}", self.name))
    }

    /// Whether a sidecar, or the beginning of one, is there.
    pub fn has_sidecar(&self) -> io::Result<bool> {
        for suffix in [REDO_SUFFIX, REDO_TEMP_SUFFIX] {
            let name = format!("{}{suffix}", self.name);
            match self.dir.is_regular(&name)? {
                Some(true) => return Ok(true),
                // Not ours: we make regular files only. Reading a pipe or what a link leads to
                // is how a share's user would have us do their work.
                Some(false) => {
                    return Err(io::Error::other(format!("{name} is not a regular file")));
                }
                None => {}
            }
        }
        Ok(false)
    }

    /// Prepares the file that the sidecar is written to: private like a mailbox must be, and
    /// surely new, so that no link planted there is followed.
    pub fn prepare_sidecar(&self) -> io::Result<()> {
        let name = format!("{}{REDO_TEMP_SUFFIX}", self.name);
        match self.dir.remove(&name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.dir.create_private(&name)
    }

    /// Puts the sidecar out of the way under a free name, which it returns.
    pub fn set_sidecar_aside(&self) -> io::Result<String> {
        let from = format!("{}{REDO_SUFFIX}", self.name);
        for n in 1..10_000u32 {
            let to = format!("{}.pstsyncd-aside-{n}", self.name);
            match self.dir.rename_new(&from, &to) {
                Ok(()) => {
                    self.dir.sync()?;
                    return Ok(to);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::other("too many sidecars set aside; remove some"))
    }

    /// Whether the path still names the file that was opened.
    pub fn is_current(&self) -> io::Result<bool> {
        self.dir.names(&self.name, &self.file)
    }

    /// Bytes free where the container lies.
    pub fn available(&self) -> io::Result<u64> {
        platform::available(&self.file, &self.dir)
    }
}

/// Where a log is written before it gets its name (see [`storage::RedoLog::load`]).
const REDO_TEMP_SUFFIX: &str = ".pstsyncd-redo.tmp";

fn refused(path: &str, why: Refused) -> Fault {
    match why {
        Refused::Outside => {
            let message = format!("{path} leads out of the root, or through a symbolic link");
            Fault::new(ErrorCode::BadPath, message)
        }
        Refused::NotFound => Fault::new(
            ErrorCode::NotFound,
            format!("there is no {path} beneath the root"),
        ),
        Refused::IsDirectory => {
            Fault::new(ErrorCode::NotAContainer, format!("{path} is a directory"))
        }
        Refused::Io(e) => Fault::io(path, &e),
    }
}
