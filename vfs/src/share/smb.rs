//! A share of an SMB server, reached by ourselves: SMB 2.1 to 3.1.1, always signed or encrypted.
//!
//! What it promises:
//! - Every call ends. A server that sends nothing for [`SmbConfig::silence`] while it should answer
//!   is given up, with the session and everything open on it.
//! - A lost session is made again when the next call needs it, with growing, jittered waits between
//!   attempts; a refused account is not asked about again for minutes, so that we never lock it.
//! - An open file is the same physical file for as long as it is open, or says that it is not (R1;
//!   module `file`).
//! - "Not found" is only said where the drive's root is still the directory it began with; otherwise
//!   the share is away (R3).
//! - A file that matches [`SmbConfig::alone`] and is open for writing cannot be opened for writing by
//!   anybody else, as if a Windows program had it open.
//!
//! Names are mapped as other clients do ([`smb2::name`]), so that names which Windows cannot hold are
//! listed and opened where a server has them; the drive makes none ([`Names::Windows`]).
//! DFS and the server's symbolic links are not followed.

mod address;
mod attr;
mod begun;
mod call;
mod credentials;
mod error;
mod file;
mod kerberos;
mod notify;
mod session;
mod socket;
mod validate;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use smb2::types::flags::FileAttributes;
use smb2::{FileTimes, ListOptions, RenameOptions};

pub use address::{BadAddress, SmbAddress};
pub use credentials::{Credentials, Password};
pub use error::{Retry, SmbError};
pub use kerberos::{BadCache, Tickets};

use self::call::How;
use self::error::Result;
use self::file::{OpenFile, OpenFiles, SmbFile};
use self::session::{Live, Sessions};
use super::{Attr, Changes, Entry, Kind, SetAttr, Share, ShareFile, Statfs};
use crate::path::{Names, Patterns, check_name, join, split};

/// How to reach a share.
pub struct SmbConfig {
    /// Where it is.
    pub address: SmbAddress,
    /// What the account proves itself with.
    pub credentials: Credentials,
    /// How long a server that should answer may send nothing.
    pub silence: Duration,
    /// Encrypt even where the server does not ask for it, and refuse servers that cannot.
    pub encrypt: bool,
    /// Files that nobody else may write while they are open for writing here.
    pub alone: Patterns,
}

impl SmbConfig {
    /// The usual: encryption where the server wants it, no files of our own.
    #[must_use]
    pub fn new(address: SmbAddress, credentials: impl Into<Credentials>) -> Self {
        Self {
            address,
            credentials: credentials.into(),
            silence: Duration::from_secs(10),
            encrypt: false,
            alone: Patterns::new::<&str>(&[]),
        }
    }
}

/// Most entries that a directory may have: more is taken for a server gone mad.
const MAX_ENTRIES: usize = 4_000_000;

/// A share of an SMB server.
pub struct SmbShare(Arc<Inner>);

/// What the share and its open files have in common.
struct Inner {
    sessions: Sessions,
    files: OpenFiles,
    begun: begun::Reads,
    alone: Patterns,
    prefix: String,
    /// Runs the sockets. Calls are driven by the threads that make them.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Nothing that still runs there has anybody who waits for it.
            runtime.shutdown_background();
        }
    }
}

impl Inner {
    fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> io::Result<T> {
        let runtime = self
            .runtime
            .as_ref()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        Ok(runtime.block_on(work)?)
    }

    /// A drive path as a path of the share. Whatever could lead out of it is refused.
    fn place(&self, path: &str) -> Result<String> {
        for name in path.split('/').filter(|_| !path.is_empty()) {
            check_name(name).map_err(|e| {
                SmbError::new(Retry::Never, io::ErrorKind::InvalidInput, e.to_string())
            })?;
        }
        Ok(if path.is_empty() {
            self.prefix.clone()
        } else {
            join(&self.prefix, path)
        })
    }

    /// A drive path as it is written in a request of ours.
    fn wire_name(&self, path: &str) -> Result<String> {
        self.place(path).map(|p| smb2::encode_path(&p))
    }

    /// "Not found" counts only where the root is still there.
    async fn sure<T>(&self, live: &Live, answer: Result<T>) -> Result<T> {
        if let Err(e) = &answer
            && e.kind() == io::ErrorKind::NotFound
        {
            self.sessions.check_root(live).await?;
        }
        answer
    }

    /// A request that changes nothing: asked again on a new session if the old one breaks.
    async fn ask<T>(&self, work: impl AsyncFn(&Live) -> smb2::Result<T>) -> Result<T> {
        let live = self.sessions.live().await?;
        match live.answer(work(&live)).await {
            Err(e) if e.fatal => {}
            answer => return self.sure(&live, answer).await,
        }
        let live = self.sessions.live().await?;
        let answer = live.answer(work(&live)).await;
        self.sure(&live, answer).await
    }

    /// A request that changes something: if the session breaks, nobody knows.
    async fn change<T>(&self, work: impl AsyncFn(&Live) -> smb2::Result<T>) -> Result<T> {
        let live = self.sessions.live().await?;
        let answer = live.answer(work(&live)).await;
        self.sure(&live, answer).await
    }

    async fn stat(&self, path: &str) -> Result<(Attr, u32)> {
        let at = self.place(path)?;
        let (info, identity) = self
            .ask(async |live| {
                let mut conn = live.conn.clone();
                live.tree.stat_with_identity(&mut conn, &at).await
            })
            .await?;
        let index = identity.map_or(0, |i| i.index_number);
        Ok((attr::of_info(&info, index), info.attributes.bits()))
    }

    async fn list(&self, path: &str) -> Result<Vec<Entry>> {
        let at = self.place(path)?;
        let options = ListOptions::new().index_numbers(true);
        let live = self.sessions.live().await?;
        let opened = live
            .answer(
                live.tree
                    .open_directory_reader_with(live.conn.clone(), &at, options),
            )
            .await;
        let mut reader = self.sure(&live, opened).await?;
        let mut out = Vec::new();
        while let Some(batch) = live.answer(reader.next_batch()).await? {
            for entry in batch {
                if entry.name == "." || entry.name == ".." {
                    continue;
                }
                // A listing without it would be a shorter one (R3).
                if check_name(&entry.name).is_err() {
                    return Err(SmbError::new(
                        Retry::Never,
                        io::ErrorKind::InvalidData,
                        format!(
                            "the server lists a name that no file can have: {:?}",
                            entry.name
                        ),
                    ));
                }
                out.push(Entry {
                    attr: attr::of_entry(&entry),
                    name: entry.name,
                });
            }
            if out.len() > MAX_ENTRIES {
                return Err(SmbError::new(
                    Retry::Never,
                    io::ErrorKind::InvalidData,
                    format!("the directory has more than {MAX_ENTRIES} entries"),
                ));
            }
        }
        if path.is_empty() {
            // An empty directory in the place of an unmounted volume lists well.
            self.sessions.check_root(&live).await?;
        }
        Ok(out)
    }

    /// The handle that writers of this file share, if there is one.
    async fn writer(&self, path: &str) -> Result<Option<Arc<OpenFile>>> {
        let Some(file) = self.files.writer(path) else {
            return Ok(None);
        };
        let is = file.is_called(path) || {
            let (attr, _) = self.stat(path).await?;
            file.is(attr.file_id)
        };
        Ok(is.then_some(file))
    }

    async fn open(self: &Arc<Self>, path: &str, how: How) -> Result<SmbFile> {
        if how.write
            && how.create.is_none()
            && let Some(file) = self.writer(path).await?
        {
            match file.handle().await {
                Ok(_) => return Ok(SmbFile(file)),
                // What is there now is another file than that handle's.
                Err(e) if e.kind() == io::ErrorKind::StaleNetworkFileHandle => {}
                Err(e) => return Err(e),
            }
        }
        let name = self.wire_name(path)?;
        let mut live = self.sessions.live().await?;
        let mut answer = live.answer(live.open(name.clone(), how)).await;
        if how.create.is_none() && answer.as_ref().is_err_and(|e| e.fatal) {
            live = self.sessions.live().await?;
            answer = live.answer(live.open(name, how)).await;
        }
        let opened = self.sure(&live, answer).await?;
        Ok(SmbFile(self.files.add(self, path, how, live, opened)))
    }

    async fn rename(&self, from: &str, to: &str, replace: bool) -> Result<()> {
        let (a, b) = (self.place(from)?, self.place(to)?);
        let once = async || {
            self.change(async |live| {
                let mut conn = live.conn.clone();
                let options = RenameOptions::new().replace_if_exists(replace);
                live.tree.rename_with(&mut conn, &a, &b, options).await
            })
            .await
        };
        let mut done = once().await;
        let in_the_way = |e: &SmbError| {
            matches!(
                e.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::PermissionDenied
            )
        };
        if replace && done.as_ref().is_err_and(in_the_way) {
            // SMB replaces neither directories nor, on Windows, files that are open.
            let there = (self.stat(from).await, self.stat(to).await);
            let (Ok((from, _)), Ok((target, _))) = there else {
                // Nothing is in the way.
                return done;
            };
            let cleared = match (from.kind, target.kind) {
                (Kind::Dir, Kind::Dir) => self.rmdir(to).await,
                (Kind::File, Kind::File) if !self.files.at(to).is_empty() => self.unlink(to).await,
                _ => return done,
            };
            done = match cleared {
                Ok(()) => once().await,
                Err(e) => Err(e),
            };
        }
        done?;
        self.files.forget(to);
        self.files.moved(from, to);
        Ok(())
    }

    async fn rmdir(&self, path: &str) -> Result<()> {
        let at = self.place(path)?;
        self.change(async |live| {
            let mut conn = live.conn.clone();
            live.tree.delete_directory(&mut conn, &at).await
        })
        .await
    }

    /// Removes the name at once, even where we hold the file open: SMB keeps the name of a deleted
    /// file until its last handle is closed, so such a file is renamed first.
    async fn unlink(&self, path: &str) -> Result<()> {
        let mut at = self.place(path)?;
        if !self.files.at(path).is_empty() {
            let aside = join(split(path).map_or("", |(dir, _)| dir), &aside_name());
            let to = self.place(&aside)?;
            let moved = self
                .change(async |live| {
                    let mut conn = live.conn.clone();
                    live.tree.rename(&mut conn, &at, &to).await
                })
                .await;
            match moved {
                Ok(()) => {
                    at = to;
                    self.files.forget(path);
                }
                Err(e) if e.fatal || e.kind() == io::ErrorKind::NotFound => return Err(e),
                // Then the name stays until the last handle is closed.
                Err(_) => {}
            }
        }
        let delete = async || {
            self.change(async |live| {
                let mut conn = live.conn.clone();
                live.tree.delete_link(&mut conn, &at).await
            })
            .await
        };
        match delete().await {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                // POSIX asks the directory whether a file may go, Windows the file too.
                let info = self
                    .ask(async |live| {
                        let mut conn = live.conn.clone();
                        live.tree.stat(&mut conn, &at).await
                    })
                    .await?;
                let bits = info.attributes.bits();
                if bits & FileAttributes::READONLY == 0 || info.is_directory {
                    return Err(e);
                }
                let bits = FileAttributes::new(bits & !FileAttributes::READONLY);
                self.change(async |live| {
                    let mut conn = live.conn.clone();
                    let times = FileTimes::new().set_attributes(bits);
                    live.tree.set_times(&mut conn, &at, times).await
                })
                .await?;
                delete().await
            }
            other => other,
        }
    }

    async fn set_attr(&self, path: &str, set: &SetAttr) -> Result<()> {
        let mut bits = None;
        if let Some(mode) = set.mode {
            let (attr, now) = self.stat(path).await?;
            let new = attr::attributes(mode, now);
            if attr.kind == Kind::File && new != now {
                bits = Some(new);
            }
        }
        if bits.is_none() && set.atime.is_none() && set.mtime.is_none() {
            return Ok(());
        }
        if let Some(file) = self.writer(path).await? {
            let now = match bits {
                None => 0,
                Some(b) if b & FileAttributes::SETTABLE == 0 => FileAttributes::NORMAL,
                Some(b) => b & FileAttributes::SETTABLE,
            };
            match file.set_basic(set, now).await {
                // What has this name now is another file than that handle's.
                Err(e) if e.kind() == io::ErrorKind::StaleNetworkFileHandle => {}
                other => return other,
            }
        }
        let at = self.place(path)?;
        let mut times = FileTimes::new();
        times.accessed = set.atime.map(attr::file_time);
        times.modified = set.mtime.map(attr::file_time);
        times.attributes = bits.map(FileAttributes::new);
        self.change(async |live| {
            let mut conn = live.conn.clone();
            live.tree.set_times(&mut conn, &at, times).await
        })
        .await
    }
}

/// A name for a file that is deleted, but still open.
fn aside_name() -> String {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(std::process::id());
    format!("~pstsyncd-{random:016x}.deleted")
}

impl SmbShare {
    /// A share that is reached when it is first needed.
    ///
    /// # Errors
    /// No threads can be made.
    pub fn new(config: SmbConfig) -> io::Result<Self> {
        // One thread runs the socket: what arrives wakes it, and nobody else. With a second one a waking thread
        // wakes the other too, to look for work that is not there. What is packed and signed is so on the
        // threads of the callers.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("smb")
            .enable_all()
            .build()?;
        Ok(Self(Arc::new(Inner {
            prefix: config.address.path.clone(),
            alone: config.alone.clone(),
            sessions: Sessions::new(config),
            files: OpenFiles::default(),
            begun: begun::Reads::default(),
            runtime: Some(runtime),
        })))
    }

    /// Signs in and looks at the root.
    ///
    /// # Errors
    /// An [`SmbError`] that says what is wrong, and whether waiting may help.
    pub fn connect(&self) -> io::Result<()> {
        self.0
            .wait(async { self.0.sessions.live().await.map(drop) })
    }

    /// The DOS attributes of a file (MS-FSCC 2.6), of which the drive shows only "read-only".
    ///
    /// # Errors
    /// What the server says.
    pub fn dos_attributes(&self, path: &str) -> io::Result<u32> {
        self.0.wait(self.0.stat(path)).map(|(_, bits)| bits)
    }

    fn how(&self, path: &str, write: bool, create: Option<u32>) -> How {
        How {
            write,
            alone: write && self.0.alone.matches(path),
            create,
        }
    }
}

impl Share for SmbShare {
    fn stat(&self, path: &str) -> io::Result<Attr> {
        self.0.wait(self.0.stat(path)).map(|(attr, _)| attr)
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        self.0.wait(async {
            match self.0.list(path).await {
                Err(e) if e.fatal => self.0.list(path).await,
                other => other,
            }
        })
    }

    fn read_link(&self, path: &str) -> io::Result<String> {
        // The text of a link of a Windows server means nothing here.
        match self.stat(path)?.kind {
            Kind::Symlink => Err(io::ErrorKind::Unsupported.into()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn names(&self) -> Names {
        Names::Windows
    }

    fn has_locks(&self) -> bool {
        true
    }

    fn may_tell(&self) -> bool {
        true
    }

    fn heard(&self) -> Option<std::time::Instant> {
        self.0.sessions.heard()
    }

    fn changes(&self) -> io::Result<Box<dyn Changes>> {
        Ok(Box::new(self.0.wait(self.0.changes())?))
    }

    fn open(&self, path: &str, write: bool) -> io::Result<Box<dyn ShareFile>> {
        let how = self.how(path, write, None);
        Ok(Box::new(self.0.wait(self.0.open(path, how))?))
    }

    fn create(&self, path: &str, mode: u32) -> io::Result<Box<dyn ShareFile>> {
        let bits = attr::attributes(mode, FileAttributes::ARCHIVE);
        let how = self.how(path, true, Some(bits));
        Ok(Box::new(self.0.wait(self.0.open(path, how))?))
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        self.0.wait(self.0.rename(from, to, replace))
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.0.wait(async {
            // SMB deletes an empty directory like a file.
            if self.0.stat(path).await?.0.kind == Kind::Dir {
                return Err(SmbError::new(
                    Retry::Never,
                    io::ErrorKind::IsADirectory,
                    "this is a directory",
                ));
            }
            self.0.unlink(path).await
        })
    }

    fn mkdir(&self, path: &str, _mode: u32) -> io::Result<()> {
        self.0.wait(async {
            let at = self.0.place(path)?;
            self.0
                .change(async |live| {
                    let mut conn = live.conn.clone();
                    live.tree.create_directory(&mut conn, &at).await
                })
                .await
        })
    }

    fn rmdir(&self, path: &str) -> io::Result<()> {
        self.0.wait(self.0.rmdir(path))
    }

    fn set_attr(&self, path: &str, set: &SetAttr) -> io::Result<()> {
        let (uid, gid) = crate::own_ids();
        if set.uid.is_some_and(|u| u != uid) || set.gid.is_some_and(|g| g != gid) {
            return Err(not_permitted());
        }
        self.0.wait(self.0.set_attr(path, set))
    }

    fn statfs(&self) -> io::Result<Statfs> {
        let info = self.0.wait(self.0.ask(async |live| {
            let mut conn = live.conn.clone();
            live.tree.fs_info(&mut conn).await
        }))?;
        Ok(Statfs {
            total: info.total_bytes,
            available: info.free_bytes,
            // SMB does not tell.
            files: 0,
            files_free: 0,
        })
    }

    fn probe(&self) -> io::Result<()> {
        self.0.wait(async {
            let live = self.0.sessions.live().await?;
            self.0.sessions.check_root(&live).await
        })
    }
}

/// A share has no owners to give files to.
fn not_permitted() -> io::Error {
    #[cfg(unix)]
    return rustix::io::Errno::PERM.into();
    #[cfg(not(unix))]
    io::ErrorKind::PermissionDenied.into()
}
