//! The `pstsyncd` binary: everything is in the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    pstsyncd::run(std::env::args_os())
}
