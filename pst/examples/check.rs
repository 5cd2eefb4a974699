//! Says what is wrong with a PST, where, and by which section of [MS-PST]:
//! `cargo run -p pstsyncd-pst --example check -- mail.pst`

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use pst::check::{Severity, check, check_ltp, worst};
use pst::ndb::Ndb;
use storage::FileStorage;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: check FILE")?;
    let ndb = Arc::new(Ndb::open(Arc::new(FileStorage::open_read_only(path)?))?);
    let mut findings = check(&ndb);
    findings.extend(check_ltp(&ndb));
    for finding in &findings {
        println!("{finding}");
    }
    println!("{} findings", findings.len());
    Ok(if worst(&findings) == Some(Severity::Error) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
