//! Writes the seeds of every target: `seeds DIR` fills DIR/TARGET/ with files.

#[path = "bodies/mod.rs"]
mod bodies;

use std::path::PathBuf;

fn main() {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: seeds DIR");
        std::process::exit(2);
    };
    for (target, _) in bodies::TARGETS {
        let dir = dir.join(target);
        std::fs::create_dir_all(&dir).expect("makes the directory");
        for (name, seed) in bodies::seeds(target) {
            std::fs::write(dir.join(name), seed).expect("writes a seed");
        }
    }
}
