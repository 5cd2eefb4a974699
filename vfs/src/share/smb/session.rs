//! The session with the server: made when it is needed, given up when the server falls silent,
//! made again with patience.
//!
//! A [`Live`] is one TCP connection with one session and one tree; it is never revived. What was
//! opened on it holds it, so that a file handle cannot be sent on another session, where its number
//! may mean another file.
//!
//! A new session names the one before it (MS-SMB2 3.3.5.5.3): the server ends that one, with its
//! handles and whatever of its requests were not done yet, before it answers. So no write of a
//! session we gave up can land after the first answer of its successor.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use smb2::client::{Cipher, Connection, Session};
use smb2::types::Dialect;
use smb2::types::SessionId;
use smb2::types::flags::Capabilities;
use smb2::types::status::NtStatus;
use smb2::{ErrorKind, Tree};

use super::error::{Result, Retry, SmbError};
use super::wire::{Tap, Wire};
use super::{Credentials, SmbConfig, socket, validate};

/// One connection, session and tree.
pub(super) struct Live {
    pub(super) conn: Connection,
    pub(super) tree: Tree,
    /// Most bytes that one READ or WRITE carries.
    pub(super) chunk: usize,
    /// Index number of the drive's root directory on the server; 0 where it has none.
    pub(super) root: u64,
    tap: Arc<Tap>,
    silence: Duration,
}

/// Requests are kept so small that a slow but living link answers one within the time that counts
/// as silence (at 10 s: 210 kbit/s and more), and large enough to fill a fast one.
const CHUNK: usize = 256 * 1024;
/// What one credit pays for, and all that a server without large requests takes (MS-SMB2 3.2.4.1.5).
pub(super) const UNIT: usize = 65536;
/// However lively the connection is, one request may take this many times the silence.
const LONGEST: u32 = 6;

impl Live {
    /// Waits for an answer, for as long as the server sends anything.
    pub(super) async fn answer<T>(&self, work: impl Future<Output = smb2::Result<T>>) -> Result<T> {
        let done = guarded(&self.tap, self.silence, work).await;
        let done = done.unwrap_or_else(|| {
            let sentence = format!("the server has not answered for {:?}", self.silence);
            Err(SmbError::link(io::ErrorKind::TimedOut, sentence))
        });
        self.judged(done)
    }

    /// An answer for which nobody's patience is measured here; see `begun`.
    pub(super) fn answered<T>(&self, done: smb2::Result<T>) -> Result<T> {
        self.judged(done.map_err(|e| SmbError::from_client(&e)))
    }

    fn judged<T>(&self, done: Result<T>) -> Result<T> {
        if done.as_ref().is_err_and(|e| e.fatal) {
            self.conn.mark_dead();
        }
        done
    }

    /// Gives the connection up if the server owes an answer since `begun` and has been silent for too long.
    pub(super) fn give_up_if_silent(&self, begun: Instant) {
        let heard = self.heard().map_or(begun, |at| at.max(begun));
        if Instant::now() >= (heard + self.silence).min(begun + self.silence * LONGEST) {
            self.conn.mark_dead();
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.conn.is_disconnected()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.conn.mark_dead();
    }
}

/// The result of `work`; `None` if the server fell silent meanwhile, or took too long.
async fn guarded<T>(
    tap: &Tap,
    silence: Duration,
    work: impl Future<Output = smb2::Result<T>>,
) -> Option<Result<T>> {
    let begin = Instant::now();
    let end = begin + silence * LONGEST;
    let mut work = std::pin::pin!(work);
    loop {
        let heard = tap.last_byte().map_or(begin, |at| at.max(begin));
        let until = (heard + silence).min(end);
        if Instant::now() >= until {
            return None;
        }
        if let Ok(done) = tokio::time::timeout_at(until.into(), &mut work).await {
            return Some(done.map_err(|e| SmbError::from_client(&e)));
        }
    }
}

/// Keeps at most one session.
pub(super) struct Sessions {
    config: SmbConfig,
    state: tokio::sync::Mutex<State>,
    /// The root directory that was first seen.
    root: Mutex<Option<u64>>,
    /// The live connection's, so that nobody waits for one who dials.
    tap: Mutex<Option<Arc<Tap>>>,
}

#[derive(Default)]
struct State {
    live: Option<Arc<Live>>,
    /// The last session, for the server to end.
    previous: Option<SessionId>,
    failed: Option<Failed>,
}

/// The last attempt failed; until `again` its error is the answer.
struct Failed {
    error: SmbError,
    again: Instant,
    times: u32,
}

/// Waits between attempts: from short to long, doubling. After "wrong password" they are long, as a
/// few attempts lock an account in many places.
const NETWORK: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));
/// Longest that one attempt waits for the TCP connection. The kernel repeats its question after 1, 3 and
/// 7 seconds; a new attempt asks sooner than the third of them.
const CONNECT: Duration = Duration::from_secs(4);

const REFUSED: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(900));

impl Live {
    /// When the server last sent a byte.
    pub(super) fn heard(&self) -> Option<Instant> {
        self.tap.last_byte()
    }
}

impl Sessions {
    pub(super) fn new(config: SmbConfig) -> Self {
        Self {
            config,
            state: tokio::sync::Mutex::default(),
            root: Mutex::new(None),
            tap: Mutex::default(),
        }
    }

    /// When the server last sent a byte.
    pub(super) fn heard(&self) -> Option<Instant> {
        let tap = self.tap.lock().unwrap_or_else(PoisonError::into_inner);
        tap.as_ref()?.last_byte()
    }

    /// The session; makes one where there is none and the last failure is long enough ago.
    pub(super) async fn live(&self) -> Result<Arc<Live>> {
        let mut state = self.state.lock().await;
        if let Some(live) = &state.live
            && !live.is_dead()
        {
            return Ok(live.clone());
        }
        state.live = None;
        if let Some(failed) = &state.failed
            && Instant::now() < failed.again
        {
            return Err(failed.error.clone());
        }
        match self.dial(&mut state).await {
            Ok(live) => {
                state.failed = None;
                let mut tap = self.tap.lock().unwrap_or_else(PoisonError::into_inner);
                *tap = Some(live.tap.clone());
                drop(tap);
                state.live = Some(live.clone());
                Ok(live)
            }
            Err(e) => {
                let error = e.no_session();
                let times = state.failed.as_ref().map_or(0, |f| f.times);
                let (least, most) = if error.retry == Retry::Soon {
                    NETWORK
                } else {
                    REFUSED
                };
                let wait = least.saturating_mul(1 << times.min(16)).min(most);
                let again = Instant::now() + jittered(wait);
                tracing::info!(share = %self.config.address, %error, ?wait, "no session");
                state.failed = Some(Failed {
                    error: error.clone(),
                    again,
                    times: times + 1,
                });
                Err(error)
            }
        }
    }

    async fn dial(&self, state: &mut State) -> Result<Arc<Live>> {
        let config = &self.config;
        let endpoint = config.address.endpoint();
        let tcp = socket::connect(&endpoint, config.silence.min(CONNECT))
            .await
            .map_err(|e| SmbError::from_client(&e))?;
        let (wire, tap) = Wire::new(tcp);
        let mut conn = Connection::from_transport(
            Box::new(wire.clone()),
            Box::new(wire),
            config.address.host.clone(),
        );
        // All waiting is ours: by silence, in `guarded`. The library's ECHO keeps a server that works
        // on one long request from being silent.
        conn.set_response_timeout(None);
        conn.set_send_timeout(None);
        conn.set_keepalive(Some(config.silence / 4));
        if let Some(previous) = state.previous {
            conn.set_previous_session_id(previous);
        }
        let made = guarded(&tap, config.silence, async {
            Ok(self.greet(&mut conn, &tap).await)
        });
        let tree = match made.await {
            Some(Ok(Ok(tree))) => tree,
            failed => {
                conn.mark_dead();
                return Err(match failed {
                    Some(Ok(Err(e)) | Err(e)) => e,
                    _ => SmbError::link(
                        io::ErrorKind::TimedOut,
                        format!("{endpoint} took the connection, but does not answer"),
                    ),
                });
            }
        };
        state.previous = Some(conn.session_id());
        let chunk = conn.params().map_or(UNIT, |p| {
            let large = p.capabilities.contains(Capabilities::LARGE_MTU);
            let most = p.max_read_size.min(p.max_write_size) as usize;
            let chunk = if large { CHUNK } else { UNIT };
            chunk.min(most.max(UNIT))
        });
        let mut live = Live {
            conn,
            tree,
            chunk,
            root: 0,
            tap,
            silence: config.silence,
        };
        live.root = self.look_at_root(&live).await?;
        Ok(Arc::new(live))
    }

    /// NEGOTIATE, SESSION_SETUP, TREE_CONNECT, and a look back at NEGOTIATE.
    async fn greet(&self, conn: &mut Connection, tap: &Tap) -> Result<Tree> {
        let config = &self.config;
        let client = |e: smb2::Error| SmbError::from_client(&e);
        conn.negotiate().await.map_err(client)?;
        tap.correct(conn);
        let params = conn
            .params()
            .ok_or_else(|| SmbError::garbage("no dialect"))?;
        let refuse = |text: &str| {
            Err(SmbError::new(
                Retry::Never,
                io::ErrorKind::Unsupported,
                text,
            ))
        };
        if params.dialect == Dialect::Smb2_0_2 {
            return refuse("the server speaks no version of SMB from 2.1 on");
        }
        let address = &config.address;
        let session = self.sign_in(conn).await?;
        if !session.should_sign && !session.should_encrypt {
            return refuse("the server offers a session that is neither signed nor encrypted");
        }
        let cipher = match params.dialect {
            Dialect::Smb3_1_1 => params.cipher,
            // Before 3.1.1 there is just one.
            _ => Some(Cipher::Aes128Ccm)
                .filter(|_| params.capabilities.contains(Capabilities::ENCRYPTION)),
        };
        if config.encrypt && !encrypt(conn, &session, cipher) {
            return refuse("the server cannot encrypt, and encryption was asked for");
        }
        let tree = match Tree::connect(conn, &address.share).await {
            // Some servers take even the name of such a share only when it is encrypted.
            Err(e)
                if e.status() == Some(NtStatus::ACCESS_DENIED)
                    && !conn.should_encrypt()
                    && encrypt(conn, &session, cipher) =>
            {
                Tree::connect(conn, &address.share).await
            }
            other => other,
        };
        let tree = tree.map_err(|e| match e.kind() {
            ErrorKind::NotFound => SmbError::new(
                Retry::Never,
                io::ErrorKind::NotFound,
                format!("the server has no share named {}", address.share),
            ),
            ErrorKind::AccessDenied => SmbError::new(
                Retry::Never,
                io::ErrorKind::PermissionDenied,
                format!("the account may not use the share {}", address.share),
            ),
            _ => SmbError::from_client(&e),
        })?;
        validate::check(conn, &tree, tap).await?;
        if tree.is_dfs {
            return refuse(
                "this is a DFS namespace, which is not followed: name the server and share that it \
                 leads to",
            );
        }
        if tree.encrypt_data && !encrypt(conn, &session, cipher) {
            return refuse("the share requires encryption, which this session cannot do");
        }
        Ok(tree)
    }

    /// SESSION_SETUP.
    async fn sign_in(&self, conn: &mut Connection) -> Result<Session> {
        let address = &self.config.address;
        let session = match &self.config.credentials {
            Credentials::Password(password) => {
                let (user, domain) = (&address.user, &address.domain);
                Session::setup(conn, user, password.expose(), domain).await
            }
            Credentials::Kerberos(tickets) => {
                let (cache, with) = tickets.for_server(address)?;
                let server = &address.host;
                let setup = Session::setup_kerberos_from_ccache(conn, &with, server, &cache);
                // Less than what counts as the server's silence: it is not the server that is waited for.
                let Ok(session) = tokio::time::timeout(self.config.silence / 4 * 3, setup).await
                else {
                    return Err(SmbError::new(
                        Retry::Soon,
                        io::ErrorKind::TimedOut,
                        format!(
                            "no Kerberos ticket for this server is to be had: {} does not answer",
                            with.kdc_address
                        ),
                    ));
                };
                session
            }
        };
        session.map_err(|e| SmbError::from_client(&e))
    }

    /// The root's index number. Another directory at its place (an unmounted volume leaves one) is
    /// not the share (R3).
    async fn look_at_root(&self, live: &Live) -> Result<u64> {
        let mut conn = live.conn.clone();
        let path = &self.config.address.path;
        let (info, identity) = live
            .answer(live.tree.stat_with_identity(&mut conn, path))
            .await
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => SmbError::new(
                    Retry::Never,
                    io::ErrorKind::NotFound,
                    format!("the share has no directory {path}"),
                ),
                _ => e,
            })?;
        if !info.is_directory || info.is_link() {
            return Err(SmbError::new(
                Retry::Never,
                io::ErrorKind::NotADirectory,
                format!("{path} is not a directory of the share"),
            ));
        }
        let found = identity.map_or(0, |i| i.index_number);
        let mut first = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        match *first {
            None => *first = Some(found),
            Some(known) if known == found || known == 0 || found == 0 => {}
            Some(_) => return Err(not_the_root()),
        }
        Ok(found)
    }

    /// After "not found": whether the root is still there. If not, nothing was found because the
    /// share is gone.
    pub(super) async fn check_root(&self, live: &Live) -> Result<()> {
        match self.look_at_root(live).await {
            Ok(_) => Ok(()),
            Err(e) => Err(e.no_session()),
        }
    }
}

fn not_the_root() -> SmbError {
    SmbError::new(
        Retry::Later,
        io::ErrorKind::NotConnected,
        "the share's directory is not the one that the drive began with: a volume of the server \
         may not be mounted",
    )
}

/// Encrypts from now on; whether that is possible.
fn encrypt(conn: &mut Connection, session: &Session, cipher: Option<Cipher>) -> bool {
    if conn.should_encrypt() {
        return true;
    }
    let keys = (&session.encryption_key, &session.decryption_key);
    let (Some(cipher), (Some(out), Some(back))) = (cipher, keys) else {
        return false;
    };
    conn.activate_encryption(out.clone(), back.clone(), cipher);
    true
}

/// Between three quarters and five quarters: many clients of one server do not come back at once.
fn jittered(wait: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0) % 512;
    wait.mul_f64(0.75 + random as f64 / 1024.0)
}
