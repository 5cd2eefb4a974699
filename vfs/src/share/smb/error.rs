//! What an SMB server, or the way to it, says: one sentence, one kind, and whether asking again
//! may help.

use std::io;

use smb2::types::status::NtStatus;
use smb2::{Error, ErrorKind};

/// When the same request may get another answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The way to the server failed, or the ticket for it is not there: it may be back any moment.
    Soon,
    /// Somebody must first do something that people do anyway: close a file, free space.
    Later,
    /// Only a change of the request, the account or the server's settings helps.
    Never,
}

/// An answer of an SMB share. It travels inside an [`io::Error`]; [`SmbError::of`] finds it there.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{sentence}")]
pub struct SmbError {
    /// When asking again may help.
    pub retry: Retry,
    kind: io::ErrorKind,
    sentence: String,
    /// The connection is of no more use.
    pub(super) fatal: bool,
}

/// Result of a call to the server.
pub(super) type Result<T> = std::result::Result<T, SmbError>;

/// Status codes that the client library has no name for ([MS-ERREF] 2.3.1).
pub(super) mod status {
    pub const LOCK_NOT_GRANTED: u32 = 0xC000_0055;
    pub const RANGE_NOT_LOCKED: u32 = 0xC000_007E;
    pub const QUOTA_EXCEEDED: u32 = 0xC000_0044;
    pub const MEDIA_WRITE_PROTECTED: u32 = 0xC000_00A2;
    pub const UNEXPECTED_IO_ERROR: u32 = 0xC000_00E9;
    pub const NAME_TOO_LONG: u32 = 0xC000_0106;
    pub const IO_DEVICE_ERROR: u32 = 0xC000_0185;
    pub const PRIVILEGE_NOT_HELD: u32 = 0xC000_0061;
    pub const NOT_SAME_DEVICE: u32 = 0xC000_00D4;
    pub const TOO_MANY_OPENED_FILES: u32 = 0xC000_011F;
    pub const FILE_NOT_AVAILABLE: u32 = 0xC000_0467;
    pub const INVALID_HANDLE: u32 = 0xC000_0008;
}

/// The answer to an UNLOCK of what is not locked.
pub(super) const RANGE_NOT_LOCKED: NtStatus = NtStatus(status::RANGE_NOT_LOCKED);

impl SmbError {
    /// The answer within an error, if an SMB share gave it.
    #[must_use]
    pub fn of(e: &io::Error) -> Option<&Self> {
        e.get_ref()?.downcast_ref()
    }

    /// What kind of error this is for the drive.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.kind
    }

    pub(super) fn new(retry: Retry, kind: io::ErrorKind, sentence: impl Into<String>) -> Self {
        Self {
            retry,
            kind,
            sentence: sentence.into(),
            fatal: false,
        }
    }

    /// The same, with where it was found.
    pub(super) fn at(self, place: &std::path::Path) -> Self {
        let sentence = format!("{} ({})", self.sentence, place.display());
        Self { sentence, ..self }
    }

    /// The way to the server failed; the connection is of no more use.
    pub(super) fn link(kind: io::ErrorKind, sentence: impl Into<String>) -> Self {
        Self {
            fatal: true,
            ..Self::new(Retry::Soon, kind, sentence)
        }
    }

    /// The server said something that no correct server says.
    pub(super) fn garbage(what: &str) -> Self {
        let said = format!("the server's answer makes no sense ({what})");
        Self::link(io::ErrorKind::ConnectionAborted, said)
    }

    /// An answer to the attempt to get a session or the share: for the drive the share is not
    /// there, whatever the reason.
    pub(super) fn no_session(self) -> Self {
        let kind = match self.kind {
            k if self.fatal => k,
            _ => io::ErrorKind::NotConnected,
        };
        Self { kind, ..self }
    }

    /// An error of the client library.
    pub(super) fn from_client(e: &Error) -> Self {
        use io::ErrorKind as K;
        match e {
            Error::Protocol { status, .. } => Self::from_status(*status),
            Error::Auth { message } => Self::new(
                Retry::Never,
                K::PermissionDenied,
                format!("signing in failed: {message}"),
            ),
            Error::GuestSessionRefused { .. } => Self::new(
                Retry::Never,
                K::PermissionDenied,
                "the server lets this account in as a guest only: check user name and password",
            ),
            Error::SignatureInvalid { .. } => Self::link(
                K::ConnectionAborted,
                "an answer of the server has a wrong signature: the server is broken, or somebody \
                 changes what is sent",
            ),
            Error::InvalidData { message } => Self::garbage(message),
            Error::Io(e) => Self::link(link_kind(e.kind()), format!("the connection failed: {e}")),
            Error::Timeout | Error::SendTimeout { .. } | Error::CreditStarvation { .. } => {
                Self::link(K::TimedOut, "the server does not answer")
            }
            Error::ConnectFailed { host, attempts } => {
                let refused = |a: &smb2::transport::ConnectAttempt| {
                    a.error_kind == Some(K::ConnectionRefused)
                };
                if attempts.iter().any(refused) {
                    Self::link(
                        K::ConnectionRefused,
                        format!("{host} refuses the connection"),
                    )
                } else {
                    Self::link(K::HostUnreachable, format!("{host} cannot be reached"))
                }
            }
            Error::DfsReferralRequired { .. } => Self::from_status(NtStatus::PATH_NOT_COVERED),
            Error::ShareRedirected { .. } => Self::new(
                Retry::Never,
                K::Unsupported,
                "the server sends this share to another server of its cluster: name that one",
            ),
            other => match other.kind() {
                ErrorKind::ConnectionLost | ErrorKind::TimedOut | ErrorKind::SessionExpired => {
                    Self::link(K::ConnectionReset, "the server closed the connection")
                }
                ErrorKind::Unsupported => Self::new(
                    Retry::Never,
                    K::Unsupported,
                    "the server does not support this",
                ),
                _ => Self::new(
                    Retry::Later,
                    K::Other,
                    format!("the request failed: {other}"),
                ),
            },
        }
    }

    /// A status that the server answered with.
    pub(super) fn from_status(code: NtStatus) -> Self {
        use io::ErrorKind as K;
        let never = |kind, text: &str| Self::new(Retry::Never, kind, text);
        let later = |kind, text: &str| Self::new(Retry::Later, kind, text);
        match code {
            NtStatus::OBJECT_NAME_NOT_FOUND
            | NtStatus::OBJECT_PATH_NOT_FOUND
            | NtStatus::NO_SUCH_FILE
            | NtStatus::NOT_FOUND => never(K::NotFound, "there is no such file on the share"),
            NtStatus::BAD_NETWORK_NAME | NtStatus::BAD_NETWORK_PATH => {
                never(K::NotFound, "the server has no share of this name")
            }
            NtStatus::OBJECT_NAME_COLLISION => never(K::AlreadyExists, "the name is taken"),
            NtStatus::ACCESS_DENIED => never(K::PermissionDenied, "the share denies access"),
            NtStatus::CANNOT_DELETE => never(K::PermissionDenied, "the file is read-only"),
            NtStatus::SHARING_VIOLATION | NtStatus::FILE_LOCK_CONFLICT => {
                later(K::ResourceBusy, "another program or computer uses the file")
            }
            NtStatus::DELETE_PENDING => later(
                K::ResourceBusy,
                "the file was deleted while another program or computer still uses it",
            ),
            NtStatus::DISK_FULL => later(K::StorageFull, "the share is full"),
            NtStatus::FILE_IS_A_DIRECTORY => never(K::IsADirectory, "this is a directory"),
            NtStatus::NOT_A_DIRECTORY => never(K::NotADirectory, "this is not a directory"),
            NtStatus::DIRECTORY_NOT_EMPTY => {
                never(K::DirectoryNotEmpty, "the directory is not empty")
            }
            NtStatus::OBJECT_NAME_INVALID => {
                never(K::InvalidInput, "the share cannot hold this name")
            }
            NtStatus::INVALID_PARAMETER => {
                never(K::InvalidInput, "the server refuses the request's values")
            }
            NtStatus::PATH_NOT_COVERED => never(
                K::Unsupported,
                "this path is a DFS link to another server, which is not followed: name that \
                 server and its share",
            ),
            NtStatus::STOPPED_ON_SYMLINK => never(
                K::Unsupported,
                "this is a symbolic link of the server, which is not followed",
            ),
            NtStatus::NOT_SUPPORTED
            | NtStatus::NOT_IMPLEMENTED
            | NtStatus::INVALID_DEVICE_REQUEST
            | NtStatus::INVALID_INFO_CLASS => {
                never(K::Unsupported, "the server does not support this")
            }
            NtStatus::LOGON_FAILURE => never(
                K::PermissionDenied,
                "the server does not accept the user name or password",
            ),
            NtStatus::ACCOUNT_DISABLED
            | NtStatus::ACCOUNT_EXPIRED
            | NtStatus::ACCOUNT_LOCKED_OUT
            | NtStatus::ACCOUNT_RESTRICTION
            | NtStatus::INVALID_LOGON_HOURS
            | NtStatus::INVALID_WORKSTATION => never(
                K::PermissionDenied,
                "the account is locked, disabled, expired, or may not sign in from here or now",
            ),
            NtStatus::PASSWORD_EXPIRED | NtStatus::PASSWORD_MUST_CHANGE => {
                never(K::PermissionDenied, "the account's password has expired")
            }
            NtStatus::INSUFFICIENT_RESOURCES
            | NtStatus::INSUFF_SERVER_RESOURCES
            | NtStatus::REQUEST_NOT_ACCEPTED => later(
                K::ResourceBusy,
                "the server is too busy or has too many connections",
            ),
            NtStatus::NETWORK_NAME_DELETED
            | NtStatus::USER_SESSION_DELETED
            | NtStatus::NETWORK_SESSION_EXPIRED
            | NtStatus::FILE_CLOSED => {
                Self::link(K::ConnectionReset, "the server ended the session")
            }
            NtStatus(status::INVALID_HANDLE) => Self::link(
                K::ConnectionReset,
                "the server no longer knows the open file",
            ),
            NtStatus(status::LOCK_NOT_GRANTED) => later(
                K::ResourceBusy,
                "another program or computer holds a lock on this part",
            ),
            NtStatus(status::RANGE_NOT_LOCKED) => {
                never(K::InvalidInput, "this part of the file was not locked")
            }
            NtStatus(status::QUOTA_EXCEEDED) => later(
                K::QuotaExceeded,
                "the account's quota on the share is used up",
            ),
            NtStatus(status::MEDIA_WRITE_PROTECTED) => {
                never(K::PermissionDenied, "the share is read-only")
            }
            NtStatus(status::PRIVILEGE_NOT_HELD) => {
                never(K::PermissionDenied, "the account may not do this")
            }
            NtStatus(status::NAME_TOO_LONG) => never(K::InvalidFilename, "the name is too long"),
            NtStatus(status::NOT_SAME_DEVICE) => never(
                K::CrossesDevices,
                "the two names are on different volumes of the server",
            ),
            NtStatus(status::TOO_MANY_OPENED_FILES) => {
                later(K::ResourceBusy, "the server has too many files open")
            }
            NtStatus(
                status::IO_DEVICE_ERROR | status::UNEXPECTED_IO_ERROR | status::FILE_NOT_AVAILABLE,
            ) => Self::new(
                Retry::Later,
                K::NotConnected,
                "the server's disk fails or is gone",
            ),
            other => Self::new(
                Retry::Later,
                K::Other,
                format!("the server answered with status 0x{:08X}", other.0),
            ),
        }
    }
}

/// A failing socket is a failing link, whatever its kind.
fn link_kind(kind: io::ErrorKind) -> io::ErrorKind {
    if crate::error::is_link_error(&kind.into()) {
        kind
    } else {
        io::ErrorKind::NotConnected
    }
}

impl From<SmbError> for io::Error {
    fn from(e: SmbError) -> Self {
        io::Error::new(e.kind, e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_of_the_way_is_a_link_error_and_no_other_is() {
        let link = |e: SmbError| crate::error::is_link_error(&e.into());
        assert!(link(SmbError::from_client(&Error::Disconnected)));
        assert!(link(SmbError::from_client(&Error::Timeout)));
        assert!(link(SmbError::garbage("x")));
        assert!(link(SmbError::from_client(&Error::Io(
            io::ErrorKind::InvalidInput.into()
        ))));
        assert!(link(SmbError::from_status(NtStatus::NETWORK_NAME_DELETED)));
        assert!(!link(SmbError::from_status(NtStatus::ACCESS_DENIED)));
        assert!(!link(SmbError::from_status(
            NtStatus::OBJECT_NAME_NOT_FOUND
        )));
        assert!(!link(SmbError::from_status(NtStatus(0xDEAD_BEEF))));
        // No session: the share is away, not each of its files forbidden.
        let refused = SmbError::from_status(NtStatus::LOGON_FAILURE).no_session();
        assert_eq!(refused.retry, Retry::Never);
        assert!(link(refused));
    }

    #[test]
    fn the_answer_is_found_in_the_error() {
        let e: io::Error = SmbError::from_status(NtStatus::SHARING_VIOLATION).into();
        assert_eq!(SmbError::of(&e).unwrap().retry, Retry::Later);
        assert_eq!(e.kind(), io::ErrorKind::ResourceBusy);
        assert!(SmbError::of(&io::ErrorKind::NotFound.into()).is_none());
    }
}
