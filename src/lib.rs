//! The `pstsyncd` program as a library, so that tests and examples reach its parts.
//!
//! [`run`] is the whole of `main`. [`cli`] defines the command line; [`commands`] asks a daemon over
//! [`control`]; [`daemon`] is one; [`serve`] is an agent; [`pst_cmd`] works on PST files without
//! either. What a user sees goes
//! through [`output`], [`error`] and [`exit`].

pub mod cache_cmd;
pub mod cli;
pub mod commands;
pub mod control;
pub mod daemon;
pub mod error;
pub mod exit;
pub mod keyring;
pub mod link;
pub mod logging;
pub mod output;
pub mod policy;
pub mod pst_cmd;
pub mod secret;
pub mod serve;
#[cfg(test)]
#[path = "../tests/support/skip.rs"]
mod skip;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command, SyncCommand};
use error::{Outcome, UserError};
use exit::ExitStatus;
use output::{Format, Output};

/// Runs the program with these arguments (the first is its name), and answers its exit code.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // clap's own text; help and version are no errors. A closed pipe has no reader to tell.
            let _ = error.print();
            let failed = error.use_stderr();
            return if failed {
                ExitStatus::Error
            } else {
                ExitStatus::Synced
            }
            .into();
        }
    };
    let format = if cli.json {
        Format::Json
    } else {
        Format::Human
    };
    match dispatch(&cli, format) {
        Ok(status) => status.into(),
        Err(error) => {
            output::report(format, &error);
            error.exit.into()
        }
    }
}

fn dispatch(cli: &Cli, format: Format) -> Outcome {
    let long_running = matches!(cli.command, Command::Mount(_) | Command::Agent(_));
    logging::init(cli.verbose, long_running, format)?;
    // rustls has no default provider in this build: before anything may want one. Refused only
    // where one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match &cli.command {
        Command::Mount(args) => daemon::mount(args, cli.verbose, format),
        Command::Agent(command) => serve::agent(command, format),
        command => {
            let mut out = Output::new(format);
            let outcome = answer(command, &mut out);
            // What was found before an error is shown before the error.
            out.finish().and(outcome)
        }
    }
}

/// The commands that write their answer and end.
fn answer(command: &Command, out: &mut Output) -> Outcome {
    match command {
        Command::Mount(_) | Command::Agent(_) => Ok(ExitStatus::Synced),
        Command::Unmount(args) => commands::unmount(args, out),
        Command::Mode(args) => commands::mode(args, out),
        Command::Status(args) => commands::status(args, out),
        Command::Link(args) => commands::link(args, out),
        Command::Limit(args) => commands::limit(args, out),
        Command::Sync(args) => match &args.command {
            Some(SyncCommand::Now {
                path,
                allow_deletes,
                drive,
            }) => commands::sync_now(path.as_deref(), *allow_deletes, drive, out),
            None => commands::plan(&args.drive, out),
        },
        Command::Password(command) => keyring::run(command, out),
        Command::Cache(command) => cache_cmd::run(command, out),
        Command::Pst(command) => pst_cmd::run(command, out),
        Command::Completions { shell } => completions(*shell, out),
    }
}

fn completions(shell: clap_complete::Shell, out: &mut Output) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pstsyncd", &mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    out.line(text.trim_end())
        .map(|()| ExitStatus::Synced)
        .map_err(|e: UserError| e)
}
