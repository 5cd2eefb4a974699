//! `pst dump`: the canonical lines of a PST. They are JSON with and without `--json`.

use std::path::Path;

use pst::PstError;
use pst::dump::{DumpOptions, dump};

use super::{explain, open};
use crate::error::Outcome;
use crate::exit::ExitStatus;
use crate::output::Output;

pub(super) fn run(path: &Path, out: &mut Output) -> Outcome {
    let pst = open(path)?;
    let mut unwritten = None;
    let dumped = dump(&pst, DumpOptions::default(), &mut |line| {
        out.line(line).map_err(|error| {
            unwritten = Some(error);
            // Ends the walk; what is reported is the error above.
            PstError::Refused("the output was not taken".to_owned())
        })
    });
    match (unwritten, dumped) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(explain(path, &error)),
        (None, Ok(())) => Ok(ExitStatus::Synced),
    }
}
