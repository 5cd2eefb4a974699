//! The agent: an HTTPS server beside the share that applies change lists to the containers there.
//!
//! It promises, for each package: applied once (R7), whole (R8), only on the bytes it was made
//! for, beneath the root only, while nobody else has the container open, and answered only after
//! the result was durable and re-read (R5). What travels is in [`sync::wire`].
//!
//! [`start`] makes what is missing in the state directory (a CA, the client's token and the
//! invitation `client.json`), finishes what a crash cut short, and serves until it is told to stop.

mod apply;
mod connection;
mod container;
mod engine;
mod error;
mod exclusive;
mod in_place;
mod local;
mod paced;
mod platform;
mod pst_engine;
mod records;
mod root;
mod server;
mod site;
mod state;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};

pub use apply::StepHook;
pub use engine::{Applied, Engine, EngineError, InventoryAnswer};
pub use error::{AgentError, Fault};
pub use exclusive::{Exclusivity, NotAlone};
pub use in_place::InPlace;
pub use local::LocalSite;
pub use pst_engine::PstEngine;
pub use server::Limits;
pub use site::{Access, Container, Site};

/// Result of starting or serving.
pub type Result<T, E = AgentError> = std::result::Result<T, E>;

/// The server's certificate is issued anew this often while the agent runs.
const REISSUE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long clients may take to fetch their answers after the agent was told to stop.
const GRACE: Duration = Duration::from_secs(20);

/// How to run an agent.
#[derive(Clone)]
pub struct AgentConfig {
    /// The directory whose containers are served.
    pub root: PathBuf,
    /// Where to listen; port 0 takes a free one ([`Agent::addr`] tells which).
    pub listen: SocketAddr,
    /// Secrets and records; private to the agent's user.
    pub state_dir: PathBuf,
    /// No other program uses the root: file leases are not asked for.
    pub exclusive: bool,
    /// More names and addresses by which clients reach the agent.
    pub names: Vec<String>,
    /// Bounds on what clients can take.
    pub limits: Limits,
    /// Told of each step of an apply, on the thread that does it. For tests of crashes.
    pub steps: Option<StepHook>,
}

impl AgentConfig {
    /// The usual configuration.
    #[must_use]
    pub fn new(
        root: impl Into<PathBuf>,
        listen: SocketAddr,
        state_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            root: root.into(),
            listen,
            state_dir: state_dir.into(),
            exclusive: false,
            names: Vec::new(),
            limits: Limits::default(),
            steps: None,
        }
    }
}

impl std::fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentConfig")
            .field("root", &self.root)
            .field("listen", &self.listen)
            .field("state_dir", &self.state_dir)
            .field("exclusive", &self.exclusive)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// A running agent. Dropping it stops taking requests at once; [`Agent::stop`] does so in order.
#[derive(Debug)]
pub struct Agent {
    addr: SocketAddr,
    url: String,
    ca_fingerprint: [u8; 32],
    invitation: Option<PathBuf>,
    handle: Handle<SocketAddr>,
    shared: SharedHandle,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
    reissue: tokio::task::JoinHandle<()>,
}

struct SharedHandle(Arc<server::Shared>);

impl std::fmt::Debug for SharedHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

/// Starts an agent on the current tokio runtime. When it returns, requests are served.
///
/// # Errors
/// [`AgentError`] if the root, the state directory or the address cannot be used; nothing runs
/// then.
pub async fn start(config: AgentConfig, engine: Arc<dyn Engine>) -> Result<Agent> {
    let exclusivity = if config.exclusive {
        Exclusivity::Promised
    } else {
        Exclusivity::Lease
    };
    let site = Box::new(LocalSite::open(&config.root, exclusivity)?);
    let state = state::State::open(&config.state_dir)?;
    let records = records::Records::open(&config.state_dir.join("applied"))?;
    let names = state::server_names(&config.names, config.listen.ip());
    let tls = RustlsConfig::from_config(state.server_config(&names)?);

    let listen = |source| AgentError::Listen {
        addr: config.listen,
        source,
    };
    let listener = std::net::TcpListener::bind(config.listen).map_err(listen)?;
    let addr = listener.local_addr().map_err(listen)?;
    let url = format!(
        "https://{}:{}",
        reach_by(&config.names, addr.ip()),
        addr.port()
    );
    let invitation = state.write_invitation(&url)?;
    let ca_fingerprint = state.ca_fingerprint();

    let worker = apply::Worker {
        site,
        records,
        engine,
        steps: config.steps,
        max_package: config.limits.package,
    };
    let limits = config.limits;
    let shared = Arc::new(server::Shared::new(worker, state, limits.clone()));

    // Each request also finishes what it finds beside its own container; this finds the rest.
    let recovering = Arc::clone(&shared);
    tokio::task::spawn_blocking(move || recovering.recover_all())
        .await
        .map_err(|e| AgentError::Server(std::io::Error::other(e)))?;

    let handle = Handle::new();
    let acceptor = RustlsAcceptor::new(tls.clone())
        .handshake_timeout(limits.head)
        .acceptor(connection::Bounded::new(limits.connections, limits.idle));
    let mut server = axum_server::from_tcp(listener)
        .map_err(listen)?
        .http1_only()
        .handle(handle.clone())
        .first_request_timeout(limits.head)
        .acceptor(acceptor);
    server
        .http_builder()
        .http1()
        .header_read_timeout(limits.head);
    let router = server::router(Arc::clone(&shared));
    let server = tokio::spawn(server.serve(router.into_make_service()));

    let issuer = Arc::clone(&shared);
    let reissue = tokio::spawn(async move {
        loop {
            tokio::time::sleep(REISSUE).await;
            match issuer.state.server_config(&names) {
                Ok(config) => tls.reload_from_config(config),
                Err(error) => tracing::error!(%error, "the certificate was not renewed"),
            }
        }
    });
    tracing::info!(%addr, url, root = %config.root.display(), "the agent serves");
    let shared = SharedHandle(shared);
    Ok(Agent {
        addr,
        url,
        ca_fingerprint,
        invitation,
        handle,
        shared,
        server,
        reissue,
    })
}

/// Starts an agent, tells `ready` about it, and serves until `shutdown` is done. A change that is
/// under way then is finished first.
///
/// # Errors
/// Those of [`start`]; [`AgentError::Server`] if it fails while running.
pub async fn serve(
    config: AgentConfig,
    engine: Arc<dyn Engine>,
    ready: impl FnOnce(&Agent),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let mut agent = start(config, engine).await?;
    ready(&agent);
    tokio::select! {
        () = shutdown => agent.stop().await,
        ended = &mut agent.server => {
            agent.reissue.abort();
            agent.shared.0.stop();
            agent.shared.0.idle().await;
            ended.map_err(std::io::Error::other).and_then(|r| r).map_err(AgentError::Server)
        }
    }
}

impl Agent {
    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How clients reach it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// SHA-256 of the CA's certificate, which clients pin.
    #[must_use]
    pub const fn ca_fingerprint(&self) -> [u8; 32] {
        self.ca_fingerprint
    }

    /// The invitation file, unless it was taken away after an earlier start.
    #[must_use]
    pub fn invitation(&self) -> Option<&Path> {
        self.invitation.as_deref()
    }

    /// Stops: takes no new work, finishes changes under way, lets clients have their answers.
    ///
    /// # Errors
    /// [`AgentError::Server`] if the server had failed.
    pub async fn stop(mut self) -> Result<()> {
        self.reissue.abort();
        self.shared.0.stop();
        self.shared.0.idle().await;
        self.handle.graceful_shutdown(Some(GRACE));
        let ended = (&mut self.server).await;
        // A request that was let in at the last moment may have begun its work meanwhile.
        self.shared.0.idle().await;
        ended
            .map_err(std::io::Error::other)
            .and_then(|r| r)
            .map_err(AgentError::Server)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.reissue.abort();
        self.shared.0.stop();
        self.handle.shutdown();
    }
}

/// The name that goes into the invitation.
fn reach_by(names: &[String], listen: IpAddr) -> String {
    let bracketed = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    if let Some(name) = names.first() {
        return name
            .parse::<IpAddr>()
            .map_or_else(|_| name.clone(), bracketed);
    }
    if listen.is_unspecified() {
        return state::hostname().unwrap_or_else(|| "localhost".to_owned());
    }
    bracketed(listen)
}
