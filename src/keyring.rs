//! Passwords in the desktop's keyring (the Secret Service of GNOME, KDE and others), through its own
//! command `secret-tool`: it asks for the password on the terminal without showing it, and hands it over
//! by a pipe. Neither a command line nor the environment ever holds it.
//!
//! An entry is found by program, server, port, domain and user; the shares of one server have one.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use vfs::share::smb::SmbAddress;

use crate::cli::PasswordCommand;
use crate::error::{Outcome, UserError};
use crate::exit::ExitStatus;
use crate::output::Output;
use crate::secret::Secret;

/// The keyring's command.
const TOOL: &str = "secret-tool";
/// Longest wait for an answer: the user may be asked to unlock the keyring first.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bound of what the keyring may answer, in bytes.
const MAX_ANSWER: u64 = 4096;

/// What an entry is found by.
fn attributes(address: &SmbAddress) -> Vec<String> {
    let port = address.port.to_string();
    let pairs = [
        ("application", "pstsyncd"),
        ("server", &address.host),
        ("port", &port),
        ("domain", &address.domain),
        ("user", &address.user),
    ];
    // The Secret Service does not take empty values everywhere.
    pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .flat_map(|(name, value)| [(*name).to_owned(), value.to_lowercase()])
        .collect()
}

fn address(text: &str) -> Result<SmbAddress, UserError> {
    SmbAddress::parse(text).map_err(|e| {
        UserError::new(
            "bad-share-address",
            e.to_string(),
            "give the share as smb://user@server/share",
        )
    })
}

/// Whether there is a message bus to ask on. Without one the tool would start a bus of its own, and leave it.
fn has_bus() -> bool {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty());
    set("DBUS_SESSION_BUS_ADDRESS").is_some()
        || set("XDG_RUNTIME_DIR").is_some_and(|dir| Path::new(&dir).join("bus").exists())
}

fn missing(e: &io::Error) -> UserError {
    let message = match e.kind() {
        io::ErrorKind::NotFound => format!("the keyring cannot be asked: {TOOL} is not installed"),
        _ => format!("the keyring cannot be asked: {e}"),
    };
    UserError::new(
        "no-keyring",
        message,
        "install libsecret-tools, or keep the password in a file for --password-file",
    )
}

/// `pstsyncd password`.
///
/// # Errors
/// There is no keyring, or it refuses.
pub fn run(command: &PasswordCommand, out: &mut Output) -> Outcome {
    let (PasswordCommand::Set { share } | PasswordCommand::Forget { share }) = command;
    let address = address(share)?;
    if !has_bus() {
        return Err(missing(&io::Error::other(
            "there is no session to have a keyring",
        )));
    }
    let mut tool = Command::new(TOOL);
    let done = match command {
        PasswordCommand::Set { .. } => {
            tool.arg("store")
                .arg(format!(
                    "--label=pstsyncd: {} at {}",
                    address.user, address.host
                ))
                .arg("--");
            "is in the keyring"
        }
        PasswordCommand::Forget { .. } => {
            tool.arg("clear").arg("--");
            "is in the keyring no more"
        }
    };
    // It reads the password itself: from the terminal, or what is piped to us.
    let status = tool
        .args(attributes(&address))
        .status()
        .map_err(|e| missing(&e))?;
    if !status.success() {
        return Err(refused("the keyring refuses".to_owned()));
    }
    out.line(format_args!(
        "The password of {} at {} {done}",
        address.user, address.host
    ))?;
    Ok(ExitStatus::Synced)
}

fn refused(message: String) -> UserError {
    UserError::new(
        "keyring-refused",
        message,
        "unlock the keyring of your session, or use --password-file",
    )
}

/// The password of an account, as it was stored; `None` where there is no entry, no keyring, or no session.
///
/// # Errors
/// The keyring does not answer.
pub fn look_up(address: &SmbAddress) -> Result<Option<Secret<Vec<u8>>>, UserError> {
    if !has_bus() {
        return Ok(None);
    }
    let child = Command::new(TOOL)
        .args(["lookup", "--"])
        .args(attributes(address))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(missing(&e)),
    };
    let (tx, rx) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut answer = Vec::new();
            let read = stdout.take(MAX_ANSWER).read_to_end(&mut answer);
            let _ = tx.send(read.map(|_| answer));
        });
    }
    let Ok(answer) = rx.recv_timeout(PATIENCE) else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(refused(format!(
            "the keyring has not answered for {} s",
            PATIENCE.as_secs()
        )));
    };
    let found = child.wait().is_ok_and(|status| status.success());
    Ok(answer
        .ok()
        .filter(|a| found && !a.is_empty())
        .map(Secret::new))
}
