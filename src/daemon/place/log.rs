//! The redo log of a change, beside the container on the share.
//!
//! It has the name and the bytes that an agent beside the share gives its own ([`storage::RedoLog`]), so
//! whoever meets it next finishes the change. It is worked out here, brought over under a temporary name,
//! and gets its own only once it is durable there: one under its own name is whole.
//!
//! Bringing it over goes on where a lost link broke it off: the same change of the same bytes has the same
//! log, and what was flushed of it is noted here. The copy here spares fetching it again.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bincode::{Decode, Encode};
use storage::{FileStorage, Leaves, Loaded, ReadAt, RedoError, RedoLog, WriteSet};
use sync::record;
use sync::wire::REDO_SUFFIX;
use vfs::share::{Share, ShareFile};

use super::bytes::{MayAsk, allowed};
use super::known::private;

/// Bytes brought over between two flushes; a lost link costs one of them at most.
const PIECE: usize = 1 << 20;
/// Longest log that is fetched from a share, in bytes: what lies there is not trusted with our disk.
const MAX_FETCHED: u64 = 8 << 30;
/// Length of the checksum at a log's end, in bytes.
const CHECKSUM: u64 = 32;

const VERSION: u8 = 1;
const MAX_RECORD: usize = 1024;

/// How much of a log is durable on the share under its temporary name.
#[derive(Encode, Decode, PartialEq, Clone)]
struct Sent {
    /// Length and checksum of the log.
    log: (u64, [u8; 32]),
    /// Which file it is there.
    file_id: u64,
    bytes: u64,
}

/// The log of one container.
pub struct FarLog<'a> {
    share: &'a dyn Share,
    /// The container's path on the share.
    container: &'a str,
    /// Where the log is worked out, and copied to.
    copy: PathBuf,
    /// Where is noted how much of it was brought over.
    note: PathBuf,
    may: &'a MayAsk,
}

impl<'a> FarLog<'a> {
    /// The log of `container`; `copy` and `note` are files of its own here.
    pub fn new(
        share: &'a dyn Share,
        container: &'a str,
        copy: PathBuf,
        note: PathBuf,
        may: &'a MayAsk,
    ) -> Self {
        Self {
            share,
            container,
            copy,
            note,
            may,
        }
    }

    fn name(&self) -> String {
        format!("{}{REDO_SUFFIX}", self.container)
    }

    fn temp_name(&self) -> String {
        format!("{}.tmp", self.name())
    }

    /// Whether there is one. What is left of one that was not brought over wholly is none.
    ///
    /// # Errors
    /// What the share says; something that is no regular file has its name.
    pub fn is_there(&self) -> io::Result<bool> {
        match self.share.stat(&self.name()) {
            Ok(attr) if attr.kind == vfs::share::Kind::File => Ok(true),
            Ok(_) => Err(io::Error::other(format!(
                "{} is not a regular file",
                self.name()
            ))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes the log of `writes` durable on the share.
    ///
    /// # Errors
    /// [`RedoError`]; no log is left then.
    pub fn write(
        &self,
        writes: &WriteSet,
        base: &dyn ReadAt,
        leaves: &Leaves,
        meta: &[u8],
    ) -> Result<RedoLog, RedoError> {
        RedoLog::drop_log(&self.copy)?;
        let log = RedoLog::create_with_leaves(&self.copy, writes, base, leaves, meta)?;
        self.bring().map_err(|source| self.failed(source))?;
        Ok(log)
    }

    /// What the share's answer means for the log.
    pub fn failed(&self, source: io::Error) -> RedoError {
        if source.kind() == io::ErrorKind::AlreadyExists {
            return RedoError::Exists(self.name().into());
        }
        RedoError::Io {
            path: self.name().into(),
            source,
        }
    }

    fn bring(&self) -> io::Result<()> {
        let copy = File::open(&self.copy)?;
        let log = identity(&FileStorage::from(copy.try_clone()?))?;
        tracing::debug!(
            container = self.container,
            bytes = log.0,
            "bringing over the redo log"
        );
        let (far, mut sent) = self.resume(log)?;
        let copy = FileStorage::from(copy);
        let mut piece = vec![0; PIECE];
        while sent.bytes < log.0 {
            allowed(self.may)?;
            let n = copy.read_at(sent.bytes, &mut piece)?;
            let part = piece.get(..n).filter(|p| !p.is_empty());
            far.write_all_at(sent.bytes, part.ok_or(io::ErrorKind::UnexpectedEof)?)?;
            far.sync()?;
            sent.bytes += n as u64;
            if let Err(error) = self.note(&sent) {
                tracing::debug!(%error, "how much of a redo log is there was not noted");
            }
        }
        drop(far);
        self.share.rename(&self.temp_name(), &self.name(), false)?;
        // Flushing the file flushes what the server knows of it, its name included.
        self.share.open(&self.name(), true)?.sync()?;
        let _ = fs::remove_file(&self.note);
        Ok(())
    }

    /// The file that the log is brought into, and how much of it is there.
    fn resume(&self, log: (u64, [u8; 32])) -> io::Result<(Box<dyn ShareFile>, Sent)> {
        let temp = self.temp_name();
        let noted = fs::read(&self.note).ok();
        let noted = noted.and_then(|b| record::decode::<Sent, MAX_RECORD>(VERSION, &b).ok());
        if let Some(sent) = noted.filter(|sent| sent.log == log) {
            match self.share.open(&temp, true) {
                Ok(far) => {
                    let attr = far.stat()?;
                    let same = attr.file_id == sent.file_id && sent.file_id != 0;
                    if same && attr.size >= sent.bytes && attr.size <= log.0 {
                        tracing::info!(
                            container = self.container,
                            bytes = sent.bytes,
                            "bringing over the redo log goes on"
                        );
                        return Ok((far, sent));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        gone(self.share.unlink(&temp))?;
        let far = self.share.create(&temp, 0o600)?;
        let file_id = far.stat()?.file_id;
        let sent = Sent {
            log,
            file_id,
            bytes: 0,
        };
        Ok((far, sent))
    }

    /// Not made durable: a checksum tells what a power cut left.
    fn note(&self, sent: &Sent) -> io::Result<()> {
        let bytes = record::encode(VERSION, sent).map_err(io::Error::other)?;
        private(&self.note, true)?.write_all(&bytes)
    }

    /// Reads the log.
    ///
    /// # Errors
    /// [`RedoError`].
    pub fn load(&self) -> Result<Loaded, RedoError> {
        let far = match self.share.open(&self.name(), false) {
            Ok(far) => far,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Absent),
            Err(e) => return Err(self.failed(e)),
        };
        self.fetch(&*far).map_err(|e| self.failed(e))?;
        match RedoLog::load(&self.copy) {
            // Only what the share itself says again is damage.
            Err(RedoError::Damaged { .. }) => {
                RedoLog::drop_log(&self.copy)?;
                self.fetch(&*far).map_err(|e| self.failed(e))?;
                RedoLog::load(&self.copy)
            }
            loaded => loaded,
        }
    }

    /// Makes the copy here that of the log there.
    fn fetch(&self, far: &dyn ShareFile) -> io::Result<()> {
        let len = far.stat()?.size;
        if len > MAX_FETCHED {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("the redo log has {len} bytes, and {MAX_FETCHED} are fetched at most"),
            ));
        }
        let there = checksum(len, |at, buf| read_exact(far, at, buf))?;
        if let Ok(copy) = File::open(&self.copy)
            && identity(&FileStorage::from(copy)).is_ok_and(|here| here == (len, there))
        {
            return Ok(());
        }
        let mut copy = private(&self.copy, true)?;
        let mut buf = vec![0; PIECE];
        let mut at = 0;
        while at < len {
            let want = usize::try_from(len - at).unwrap_or(PIECE).min(PIECE);
            let part = buf.get_mut(..want).ok_or(io::ErrorKind::InvalidData)?;
            read_exact(far, at, part)?;
            copy.write_all(part)?;
            at += want as u64;
        }
        Ok(())
    }

    /// Removes the log and what is left of one. Not being there is no error.
    ///
    /// # Errors
    /// [`RedoError::Io`].
    pub fn remove(&self) -> Result<(), RedoError> {
        for name in [self.temp_name(), self.name()] {
            gone(self.share.unlink(&name)).map_err(|e| self.failed(e))?;
        }
        let _ = fs::remove_file(&self.note);
        RedoLog::drop_log(&self.copy)
    }

    /// Puts the log out of the way under a free name, which is returned.
    ///
    /// # Errors
    /// What the share says.
    pub fn set_aside(&self) -> io::Result<String> {
        for n in 1..10_000u32 {
            let to = format!("{}.pstsyncd-aside-{n}", self.container);
            match self.share.rename(&self.name(), &to, false) {
                Ok(()) => {
                    let name = Path::new(&to).file_name();
                    return Ok(name.unwrap_or_default().to_string_lossy().into_owned());
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::other(
            "too many redo logs were set aside; remove some",
        ))
    }
}

fn gone(answer: io::Result<()>) -> io::Result<()> {
    match answer {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

fn read_exact(far: &dyn ShareFile, at: u64, buf: &mut [u8]) -> io::Result<()> {
    let mut have = 0;
    while let Some(rest) = buf.get_mut(have..).filter(|r| !r.is_empty()) {
        match far.read_at(at + have as u64, rest)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => have += n,
        }
    }
    Ok(())
}

/// Length and checksum: what tells one log from another.
fn identity(log: &FileStorage) -> io::Result<(u64, [u8; 32])> {
    let len = log.len()?;
    let checksum = checksum(len, |at, buf| log.read_exact_at(at, buf))?;
    Ok((len, checksum))
}

fn checksum(len: u64, read: impl FnOnce(u64, &mut [u8]) -> io::Result<()>) -> io::Result<[u8; 32]> {
    let mut sum = [0; 32];
    if let Some(at) = len.checked_sub(CHECKSUM) {
        read(at, &mut sum)?;
    }
    Ok(sum)
}
