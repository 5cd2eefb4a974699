//! `agent serve`: checks what was asked and hands it to the agent.

use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use crate::cli::{AgentCommand, ServeArgs};
use crate::daemon::paths::StateDir;
use crate::error::{Outcome, UserError};
use crate::output::Format;

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

/// Carries out a verb of `agent`.
///
/// # Errors
/// Whatever keeps the agent from serving.
pub fn agent(command: &AgentCommand, _format: Format) -> Outcome {
    let AgentCommand::Serve(args) = command;
    let serve = check(args)?;
    tracing::debug!(
        root = %serve.root.display(),
        listen = %serve.listen,
        state = %serve.state.path().display(),
        exclusive = serve.exclusive,
        names = ?serve.names,
        "agent"
    );
    Err(UserError::not_in_this_version(
        "serving as an agent",
        "use the pst commands",
    ))
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
