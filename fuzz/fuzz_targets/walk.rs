#![no_main]

#[path = "../bodies/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(
    init: bodies::write_seeds("walk"),
    |data: &[u8]| bodies::walk(data)
);
