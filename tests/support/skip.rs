//! How a test says that it did not run. Used by every crate, without a crate of its own:
//!
//! ```ignore
//! #[path = "../../tests/support/skip.rs"]   // from storage/tests/x.rs and its like
//! mod skip;
//! ...
//! if !corpus.exists() { skip::skipped("corpus", "no corpus at hand"); return; }
//! ```
//!
//! The line `skipped: NAME: reason` is printed, and also appended to the file that the variable
//! `PSTSYNCD_SKIP_LOG` names, because the test runner hides what a passing test prints. `make test` sets it
//! and `scripts/check-skips.sh` compares the names with `tests/allowed-skips.txt`.

/// Records that a test, or a part of one, did not run. `name` is a word that
/// `tests/allowed-skips.txt` can list; `reason` says what is missing.
#[allow(dead_code)]
pub fn skipped(name: &str, reason: &str) {
    use std::io::Write;
    let line = format!("skipped: {name}: {reason}\n");
    print!("{line}");
    if let Some(log) = std::env::var_os("PSTSYNCD_SKIP_LOG") {
        // One write of one short line: appends of several processes do not mix.
        let logged = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        logged.expect("the skip log can be written");
    }
}
