//! The one error type of the drive.
//!
//! Frontends translate it in a single exhaustive match (`errno` in the FUSE frontend), so that a
//! new kind of failure cannot reach an application unmapped.

use std::io;

/// Why an operation on the drive failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such file or directory.
    #[error("no such file or directory: {0}")]
    NotFound(String),
    /// The name is taken.
    #[error("already exists: {0}")]
    Exists(String),
    /// A directory was needed.
    #[error("not a directory: {0}")]
    NotDir(String),
    /// A file was needed.
    #[error("is a directory: {0}")]
    IsDir(String),
    /// The directory still has entries.
    #[error("directory not empty: {0}")]
    NotEmpty(String),
    /// The share or the local system refused access.
    #[error("access denied: {0}")]
    Access(String),
    /// Only the owner, or nobody on this share, may do that.
    #[error("not permitted: {0}")]
    NotPermitted(String),
    /// The share, or the drive, has nothing of this kind (extended attributes, say).
    #[error("not supported: {0}")]
    Unsupported(String),
    /// No extended attribute of this name.
    #[error("no such attribute: {0}")]
    NoAttribute(String),
    /// A value is larger than the drive carries.
    #[error("too large: {0}")]
    TooLarge(&'static str),
    /// The operation is not possible on this kind of file, or a parameter is out of range.
    #[error("invalid operation: {0}")]
    Invalid(&'static str),
    /// A name is not UTF-8, empty, `.`/`..`, or holds `/` or NUL.
    #[error("name cannot be used on the drive: {0}")]
    BadName(String),
    /// The share's kind of file system cannot hold this name (see [`crate::path::Names`]).
    #[error("the share cannot hold a file of this name: {0}")]
    ForbiddenName(String),
    /// A name is longer than 255 bytes.
    #[error("name too long")]
    NameTooLong,
    /// A file has as many names as it may have.
    #[error("too many names: {0}")]
    TooManyNames(String),
    /// The handle is not open (any more), or not open for this kind of access.
    #[error("bad file handle")]
    BadHandle,
    /// The state directory's volume has no room beyond the reserve, or the share is full.
    #[error("no space left: {0}")]
    NoSpace(&'static str),
    /// The file is held for exclusive work, or still open, or a share call is still in doubt.
    #[error("busy: {0}")]
    Busy(&'static str),
    /// The drive is offline and the file is not (fully) in the cache. Frontends answer
    /// `ENETUNREACH`: nothing was tried, and trying again later may help.
    #[error("the drive is offline and this file is not in the cache: {0}")]
    NotCached(String),
    /// A share call failed because the link did, or exceeded the stall budget, and the file is
    /// not fully cached. Frontends answer `EIO` (R12).
    #[error("the share cannot be reached: {0}")]
    Link(String),
    /// The file on the share was changed by someone else while the cache was being filled from
    /// it. Frontends answer `ESTALE`.
    #[error("changed on the share meanwhile: {0}")]
    ShareChanged(String),
    /// A flush of the journal failed earlier; nothing can be promised any more, so writes are
    /// refused. Frontends answer `EIO`.
    #[error("the journal is poisoned by a failed flush: {0}")]
    Poisoned(String),
    /// The journal, the metadata or a record in them is damaged where it must not be.
    #[error("damaged: {file} at offset {offset}: {what}")]
    Damaged {
        /// File in the state directory.
        file: String,
        /// Byte offset.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// The state directory was written by a later version of this program.
    #[error(
        "{file} was written by a later version of this program (schema {found}, known: {known})"
    )]
    Newer {
        /// File in the state directory.
        file: String,
        /// Its version.
        found: u32,
        /// The latest version that this program knows.
        known: u32,
    },
    /// Another process, or another host, uses this state directory.
    #[error("the state directory is in use: {0}")]
    Locked(String),
    /// The share answered, and refuses, for a reason that has no kind of its own here (a read-only file
    /// system, a name it does not take). Frontends hand the system's answer on.
    #[error("the share refuses: {context}: {source}")]
    Refused {
        /// What was being done, with the path.
        context: String,
        /// The share's answer.
        source: io::Error,
    },
    /// Anything else the operating system said.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// Result of a drive operation.
pub type Result<T> = std::result::Result<T, Error>;

/// POSIX numbers (Linux values) by which shares report what [`io::ErrorKind`] has no word for.
mod code {
    pub const EPERM: i32 = 1;
    pub const EIO: i32 = 5;
    pub const ENXIO: i32 = 6;
    pub const ENODEV: i32 = 19;
    pub const EPIPE: i32 = 32;
    pub const ESTALE: i32 = 116;
    pub const EREMOTEIO: i32 = 121;
}

/// Whether a share's answer says that the link (not the file) is at fault.
///
/// `EIO` counts: a mounted network share reports a dead server that way, and a share with a bad
/// disk is as unusable as one that is gone.
#[must_use]
pub fn is_link_error(e: &io::Error) -> bool {
    use io::ErrorKind as K;
    if matches!(
        e.kind(),
        K::TimedOut
            | K::ConnectionRefused
            | K::ConnectionReset
            | K::ConnectionAborted
            | K::NotConnected
            | K::BrokenPipe
            | K::HostUnreachable
            | K::NetworkUnreachable
            | K::NetworkDown
            | K::StaleNetworkFileHandle
            | K::UnexpectedEof
    ) {
        return true;
    }
    cfg!(unix)
        && matches!(
            e.raw_os_error(),
            Some(
                code::EIO
                    | code::ENXIO
                    | code::ENODEV
                    | code::EPIPE
                    | code::ESTALE
                    | code::EREMOTEIO
            )
        )
}

impl Error {
    /// Wraps a system error met while doing `context`, choosing the kind by what it says.
    #[must_use]
    pub fn from_io(context: impl Into<String>, e: io::Error) -> Self {
        use io::ErrorKind as K;
        let context = context.into();
        match e.kind() {
            K::NotFound => Error::NotFound(context),
            K::AlreadyExists => Error::Exists(context),
            K::NotADirectory => Error::NotDir(context),
            K::IsADirectory => Error::IsDir(context),
            K::DirectoryNotEmpty => Error::NotEmpty(context),
            // Two answers that the library has one word for.
            K::PermissionDenied if cfg!(unix) && e.raw_os_error() == Some(code::EPERM) => {
                Error::NotPermitted(context)
            }
            K::PermissionDenied => Error::Access(context),
            K::Unsupported => Error::Unsupported(context),
            K::StorageFull | K::QuotaExceeded => Error::NoSpace("the device is full"),
            K::InvalidFilename => Error::NameTooLong,
            K::TooManyLinks => Error::TooManyNames(context),
            K::ResourceBusy => Error::Busy("another program or computer uses the file"),
            _ => Error::Io { context, source: e },
        }
    }

    /// Wraps an answer of the share: link failures become [`Error::Link`].
    #[must_use]
    pub fn from_share(context: impl Into<String>, e: io::Error) -> Self {
        if is_link_error(&e) {
            Error::Link(format!("{}: {e}", context.into()))
        } else {
            match Self::from_io(context, e) {
                Error::Io { context, source } => Error::Refused { context, source },
                known => known,
            }
        }
    }

    /// Whether the share said no to a change, and may say so for long: somebody has to do something
    /// about it.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Error::Refused { .. }
            | Error::Access(_)
            | Error::NotPermitted(_)
            | Error::Unsupported(_)
            | Error::TooLarge(_)
            | Error::Invalid(_)
            | Error::BadName(_)
            | Error::ForbiddenName(_)
            | Error::NameTooLong
            | Error::TooManyNames(_)
            | Error::NotFound(_)
            | Error::Exists(_)
            | Error::NotDir(_)
            | Error::IsDir(_)
            | Error::NotEmpty(_)
            | Error::NoAttribute(_) => true,
            Error::BadHandle
            | Error::NoSpace(_)
            | Error::Busy(_)
            | Error::NotCached(_)
            | Error::Link(_)
            | Error::ShareChanged(_)
            | Error::Poisoned(_)
            | Error::Damaged { .. }
            | Error::Newer { .. }
            | Error::Locked(_)
            | Error::Io { .. } => false,
        }
    }

    /// Whether the link is at fault, so that a fully cached file can go on from the cache.
    #[must_use]
    pub fn is_link(&self) -> bool {
        matches!(self, Error::Link(_))
    }
}

impl From<Error> for io::Error {
    fn from(e: Error) -> Self {
        let kind = match &e {
            Error::NotFound(_) => io::ErrorKind::NotFound,
            Error::Exists(_) => io::ErrorKind::AlreadyExists,
            Error::Access(_) | Error::NotPermitted(_) => io::ErrorKind::PermissionDenied,
            Error::Unsupported(_) => io::ErrorKind::Unsupported,
            Error::NoSpace(_) => io::ErrorKind::StorageFull,
            Error::Busy(_) => io::ErrorKind::ResourceBusy,
            Error::NotCached(_) => io::ErrorKind::NetworkUnreachable,
            Error::ShareChanged(_) => io::ErrorKind::StaleNetworkFileHandle,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, e)
    }
}
