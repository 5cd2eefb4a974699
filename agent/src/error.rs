//! The two kinds of errors: what keeps an agent from starting, and what a client is told.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use storage::RedoError;
use sync::kv::KvError;
use sync::wire::{ErrorBody, ErrorCode, Generation};

use crate::engine::EngineError;
use crate::platform;

/// What keeps an agent from starting. Each says what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The root is missing, no directory, or may not be read.
    #[error(
        "the root {} cannot be used: {source}; give the directory of the share with --root", .path.display()
    )]
    Root {
        /// The root.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file in the state directory cannot be read or written.
    #[error(
        "the agent's state {} cannot be used: {source}; \
         check that this user owns it, or choose another with --state", .path.display()
    )]
    State {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The state directory holds other people's files and is open to others.
    #[error(
        "{} is open to other users and not empty; \
         choose an empty or private (mode 0700) directory with --state", .0.display()
    )]
    NotPrivate(PathBuf),
    /// The address cannot be listened on.
    #[error("{addr} cannot be listened on: {source}; {}", listen_hint(.source))]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate cannot be made or read.
    #[error(
        "the agent's certificate: {0}; names must be host names or addresses (--name), \
         and the CA in the state directory whole"
    )]
    Certificate(String),
    /// The database of applied sequences does not open.
    #[error("{0}")]
    Database(#[from] KvError),
    /// The server failed while running.
    #[error("the agent's server failed: {0}; see the log and start it again")]
    Server(io::Error),
}

fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program (another agent?) has it: stop that one or choose another port with --listen"
        }
        io::ErrorKind::PermissionDenied => {
            "this user may not use that port: choose one above 1023 with --listen"
        }
        _ => "choose an address of this machine with --listen",
    }
}

/// Why a request was not done: becomes the [`ErrorBody`] of the answer.
#[derive(Debug)]
pub struct Fault {
    /// For programs.
    pub code: ErrorCode,
    /// One clear sentence.
    pub message: String,
    /// What to do next.
    pub next: &'static str,
    /// The bytes there now, where that helps the client.
    pub generation: Option<Generation>,
    /// The way to where the container lies failed: nothing answers.
    pub offline: bool,
}

impl Fault {
    /// A fault without a generation; the next step follows from the code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            next: next_step(code),
            generation: None,
            offline: false,
        }
    }

    /// Tells the client what is there now.
    #[must_use]
    pub fn with_generation(mut self, generation: Generation) -> Self {
        self.generation = Some(generation);
        self
    }

    /// The container is in use by someone else.
    pub fn in_use(path: &str) -> Self {
        Self::new(
            ErrorCode::InUse,
            format!("{path} is in use by another program; deferred"),
        )
    }

    /// An I/O error on the container or beside it.
    pub fn io(path: &str, error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        let code = match error.kind() {
            Kind::NotFound => ErrorCode::NotFound,
            Kind::StorageFull | Kind::QuotaExceeded => ErrorCode::DiskFull,
            Kind::ResourceBusy => return Self::in_use(path),
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => {
                return Self {
                    next: "let the account that is used there write the file and its folder",
                    ..Self::new(
                        ErrorCode::Storage,
                        format!("{path} may not be changed: {error}"),
                    )
                };
            }
            _ if platform::is_in_use(error) => return Self::in_use(path),
            _ => ErrorCode::Storage,
        };
        Self {
            offline: is_link(error.kind()),
            ..Self::new(code, format!("{path}: {error}"))
        }
    }

    /// An error of the redo log of `path`.
    pub fn redo(path: &str, error: &RedoError) -> Self {
        match error {
            RedoError::Io { source, .. } | RedoError::Base(source) => Self::io(path, source),
            RedoError::TooLarge { .. } => {
                Self::new(ErrorCode::TooLarge, format!("{path}: {error}"))
            }
            _ => Self::new(ErrorCode::NeedsAttention, format!("{path}: {error}")),
        }
    }

    /// An error of the database of applied sequences.
    pub fn database(error: &KvError) -> Self {
        Self::new(
            ErrorCode::Internal,
            format!("the agent's database: {error}"),
        )
    }

    /// An error of the engine.
    pub fn engine(path: &str, error: &EngineError) -> Self {
        let code = match error {
            EngineError::NotAContainer(_) => ErrorCode::NotAContainer,
            EngineError::Refused(_) => ErrorCode::PackageRefused,
            EngineError::WrongBase(_) => ErrorCode::WrongBase,
            EngineError::Io(e) => return Self::io(path, e),
        };
        Self::new(code, format!("{path}: {error}"))
    }

    /// The answer's body.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            code: self.code,
            message: self.message.clone(),
            retry: self.code.retry(),
            next: self.next.to_owned(),
            generation: self.generation,
        }
    }
}

/// Kinds that a disk of this machine never answers with.
const fn is_link(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        kind,
        Kind::TimedOut
            | Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::NotConnected
            | Kind::BrokenPipe
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::NetworkDown
            | Kind::StaleNetworkFileHandle
    )
}

const fn next_step(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Unauthorized => "take client.json from the agent's state directory",
        ErrorCode::UnknownVerb | ErrorCode::BadRequest => "use the same version on both sides",
        ErrorCode::BadPath | ErrorCode::NotFound => {
            "give the path of the container beneath the agent's root"
        }
        ErrorCode::TooLarge => "send it in smaller parts, or raise the agent's limit",
        ErrorCode::TooSlow => "send it again when the link is better",
        ErrorCode::Overloaded | ErrorCode::Stopping => "try again in a moment",
        ErrorCode::InUse => "it is tried again when that program has closed the file",
        ErrorCode::WrongBase | ErrorCode::SequenceUsed => {
            "compare with the inventory there and send again"
        }
        ErrorCode::NotExpected => "nothing was written; compare with the inventory there",
        ErrorCode::NotAContainer => "check the file with `pstsyncd pst check`",
        ErrorCode::PackageRefused => "nothing was written; use the same version on both sides",
        ErrorCode::NeedsAttention => "see the agent's log",
        ErrorCode::DiskFull => "make room on the share; the container is unharmed",
        ErrorCode::Storage => "see the agent's log; unfinished work is finished at the next try",
        ErrorCode::NotVerified => "check the share's disk; see the agent's log",
        ErrorCode::Internal | ErrorCode::Unknown => "see the agent's log",
        _ => "",
    }
}
