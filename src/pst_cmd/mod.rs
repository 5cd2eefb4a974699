//! `pst`: commands that work on PST files without a daemon.

use crate::cli::PstCommand;
use crate::error::{Outcome, UserError};
use crate::output::Output;

/// Carries out a verb of `pst`.
///
/// # Errors
/// The file is missing, is no PST, or is damaged; the command's own.
pub fn run(_command: &PstCommand, _out: &mut Output) -> Outcome {
    Err(UserError::not_in_this_version("this command", "wait"))
}
