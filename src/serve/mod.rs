//! `agent serve`: checks what was asked and hands it to the agent.

use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::{Agent, AgentConfig, AgentError, PstEngine};
use serde::Serialize;

use crate::cli::{AgentCommand, ServeArgs};
use crate::daemon::paths::StateDir;
use crate::error::{Outcome, UserError, plain};
use crate::exit::ExitStatus;
use crate::output::{Format, Output};

/// An agent to be run; the root was there when it was checked.
pub struct AgentServe {
    /// The directory whose PST files the agent keeps in sync: absolute.
    pub root: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Keys, tokens and staged uploads, held by this process.
    pub state: StateDir,
    /// Nothing else opens the files under the root.
    pub exclusive: bool,
    /// Names by which clients reach this server, beside the address.
    pub names: Vec<String>,
}

/// What an agent that serves says.
#[derive(Serialize)]
struct Serving {
    url: String,
    addr: String,
    /// SHA-256 of the agent's CA certificate, in hexadecimal: what clients pin.
    ca_fingerprint: String,
    /// The file for the client, unless it was taken away after an earlier start.
    invitation: Option<String>,
    root: String,
    pid: u32,
}

/// Carries out a verb of `agent`: serves until a signal asks for the end.
///
/// # Errors
/// Whatever keeps the agent from serving.
pub fn agent(command: &AgentCommand, format: Format) -> Outcome {
    let AgentCommand::Serve(args) = command;
    let serve = check(args)?;
    let state_dir = serve.state.path().to_owned();
    let config = AgentConfig {
        exclusive: serve.exclusive,
        names: serve.names.clone(),
        ..AgentConfig::new(&serve.root, serve.listen, &state_dir)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("agent")
        .build()
        .map_err(|e| no_runtime(&e))?;
    runtime.block_on(async {
        let shutdown = signalled().map_err(|e| no_runtime(&e))?;
        let ready = |agent: &Agent| greet(agent, &serve.root, format);
        let engine = PstEngine {
            max_unpacked: config.limits.package,
            ..PstEngine::with_scratch(&state_dir)
        };
        agent::serve(config, Arc::new(engine), ready, shutdown)
            .await
            .map_err(|e| explain(&e, &serve, &state_dir))
    })?;
    tracing::info!("the agent has ended");
    Ok(ExitStatus::Synced)
}

/// Done at the first signal that asks for the end; registered at once.
fn signalled() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

fn greet(agent: &Agent, root: &Path, format: Format) {
    let serving = Serving {
        url: agent.url().to_owned(),
        addr: agent.addr().to_string(),
        ca_fingerprint: sync::hex::encode(&agent.ca_fingerprint()),
        invitation: agent.invitation().map(|p| p.display().to_string()),
        root: root.display().to_string(),
        pid: std::process::id(),
    };
    let mut out = Output::new(format);
    let said = out
        .result(&serving, |out| {
            out.line(format_args!(
                "The agent serves {} at {}",
                serving.root, serving.url
            ))?;
            out.line(format_args!(
                "Its fingerprint is {}",
                serving.ca_fingerprint
            ))?;
            match &serving.invitation {
                Some(file) => out.line(format_args!(
                    "Take {file} to the client: mount --agent-invitation"
                )),
                None => out.line("Its invitation was taken away; clients that have it go on"),
            }
        })
        .and_then(|()| out.finish());
    if let Err(error) = said {
        // Nobody listens to the greeting: no reason to end.
        tracing::debug!(%error, "the greeting was not taken");
    }
}

fn no_runtime(error: &io::Error) -> UserError {
    UserError::new(
        "no-threads",
        format!("the agent cannot start its threads: {}", plain(error)),
        "close other programs, then run the command again",
    )
}

fn explain(error: &AgentError, serve: &AgentServe, state: &Path) -> UserError {
    match error {
        AgentError::Root { path, source } => UserError::file("use the root", path, source),
        AgentError::State { path, source } => UserError::file("use the state in", path, source),
        AgentError::NotPrivate(path) => UserError::new(
            "state-dir-unsafe",
            format!("{} is open to other users and not empty", path.display()),
            "name an empty or private (mode 0700) directory with --state-dir",
        ),
        AgentError::Listen { addr, source } => UserError::new(
            "cannot-listen",
            format!("the agent cannot listen on {addr}: {}", plain(source)),
            match source.kind() {
                io::ErrorKind::AddrInUse => {
                    "stop the program that has it (another agent?), or choose another port with \
                     --listen"
                }
                io::ErrorKind::PermissionDenied => "choose a port above 1023 with --listen",
                _ => "choose an address of this machine with --listen",
            },
        ),
        AgentError::Certificate(detail) => UserError::new(
            "certificate",
            format!("the agent's certificate cannot be made: {detail}"),
            format!(
                "check the names {:?}, and the files in {}",
                serve.names,
                state.display()
            ),
        ),
        other => UserError::new(
            "agent-failed",
            other.to_string(),
            format!("see the log; the agent's state is in {}", state.display()),
        ),
    }
}

fn check(args: &ServeArgs) -> Result<AgentServe, UserError> {
    let root = check_root(&args.root)?;
    let listen = check_address(&args.listen)?;
    let state = StateDir::locate(args.state_dir.as_deref(), "agent", &root)?;
    if state.starts_with(&root) {
        return Err(UserError::new(
            "paths-overlap",
            format!(
                "the state directory {} lies in the root {}",
                state.display(),
                root.display()
            ),
            "name another directory with --state-dir",
        ));
    }
    let state = StateDir::take(&state, "agent", &root)?;
    let (exclusive, names) = (args.exclusive, args.name.clone());
    Ok(AgentServe {
        root,
        listen,
        state,
        exclusive,
        names,
    })
}

fn check_root(given: &Path) -> Result<PathBuf, UserError> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => UserError::new(
            "root-missing",
            format!("the root {} does not exist", given.display()),
            "name the directory that holds the PST files with --root",
        ),
        io::ErrorKind::NotADirectory => UserError::new(
            "root-not-directory",
            format!("the root {} is not a directory", given.display()),
            "name the directory that holds the PST files with --root",
        ),
        _ => UserError::file("read the root", given, &e),
    };
    let root = given.canonicalize().map_err(failed)?;
    fs::read_dir(&root).map_err(failed)?;
    Ok(root)
}

fn check_address(text: &str) -> Result<SocketAddr, UserError> {
    let found = text
        .to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next());
    found.ok_or_else(|| {
        UserError::new(
            "bad-address",
            format!("{text} is no address to listen on"),
            "give it as ADDRESS:PORT, as in 0.0.0.0:8443",
        )
    })
}
