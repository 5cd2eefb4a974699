//! The `pstsyncd` binary.

fn main() {}
