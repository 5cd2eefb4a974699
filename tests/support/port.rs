//! Ports for servers that tests stop and start again, without a crate of their own (see `skip.rs`).
//!
//! A port that the kernel gave out (`bind` to 0) lies in the range it gives to clients too. While
//! nobody listens on it any client may get it; and one that connects to it may get it as its own and
//! so reach itself (TCP's simultaneous open), which looks like a server.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, TcpListener};

/// A port that is ours while this lives.
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// A port that nobody listens on, that no other test has, and from which the kernel lets no
    /// client connect.
    pub fn take() -> Self {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let mut range = range.as_deref().unwrap_or("32768 60999").split_whitespace();
        let mut bound = || {
            range
                .next()
                .and_then(|n| n.parse::<u16>().ok())
                .expect("a range")
        };
        let (first, last) = (bound(), bound());
        let free: Vec<u16> = (10_000..=u16::MAX)
            .filter(|p| !(first..=last).contains(p))
            .collect();
        assert!(free.len() > 100, "the kernel gives {first} to {last} away");
        let locks = std::env::temp_dir().join("pstsyncd-test-ports");
        std::fs::create_dir_all(&locks).expect("a directory");
        for _ in 0..1000 {
            let number = free[RandomState::new().hash_one(0) as usize % free.len()];
            let lock = File::create(locks.join(number.to_string())).expect("a file");
            if lock.try_lock().is_err() {
                continue;
            }
            // Other programs keep no locks.
            if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Self {
                    number,
                    _lock: lock,
                };
            }
        }
        panic!("no port is free");
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}
