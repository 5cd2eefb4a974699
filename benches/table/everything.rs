//! Reading everything, and what a file says of itself.

use std::path::Path;

use crate::Bench;
use crate::peer::{Peer, task};

/// Every property, body and attachment read.
pub fn rows(bench: &Bench, name: &str, file: &Path) {
    let out = bench.at("export/all");
    let peers = [
        Peer::new(
            "pstsyncd pst dump --json",
            bench.program,
            &[&"pst", &"dump", &"--json", &file],
        ),
        Peer::new(
            "readpst -r (writes mbox files)",
            "readpst",
            &[&"-q", &"-r", &"-D", &"-j", &"0", &"-o", &out, &file],
        )
        .filling(&out, true),
        Peer::new(
            "pffexport (writes a file per item)",
            "pffexport",
            &[&"-q", &"-t", &out, &file],
        )
        .filling(&out, false),
    ];
    let title = format!("Everything, {name}: every property, body and attachment read");
    task(&title, &peers, bench.runs, &bench.report());
    let _ = std::fs::remove_dir_all(bench.at("export"));
    let peers = [
        Peer::new(
            "pstsyncd pst info",
            bench.program,
            &[&"pst", &"info", &file],
        ),
        Peer::new("pffinfo", "pffinfo", &[&file]),
    ];
    let title = format!("Information about the file, {name}");
    task(&title, &peers, bench.runs, &bench.report());
}
