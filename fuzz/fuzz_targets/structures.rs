#![no_main]

#[path = "../bodies/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(
    init: bodies::write_seeds("structures"),
    |data: &[u8]| bodies::structures(data)
);
