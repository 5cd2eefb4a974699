//! What is done to the link, at both ends alike, and what passed over it.

use super::spaces::{DEVICE, Net};

/// Bytes that passed at the client's end, with the headers from Ethernet on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Passed {
    /// From the server to the client.
    pub down: u64,
    /// From the client to the server.
    pub up: u64,
}

impl Passed {
    /// Both ways.
    pub fn total(self) -> u64 {
        self.down + self.up
    }

    /// What passed since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            down: self.down - before.down,
            up: self.up - before.up,
        }
    }
}

impl Net {
    /// Lets `rate` bits a second through, each way; packets that would wait for more than 200 ms are
    /// lost, as in a router.
    pub fn shape(&self, rate: u64) {
        self.both(&format!(
            "tc qdisc replace dev {DEVICE} root tbf rate {rate}bit burst 16kb latency 200ms"
        ));
    }

    /// As fast as the machine again.
    pub fn unshape(&self) {
        self.both(&format!("tc qdisc delete dev {DEVICE} root"));
    }

    /// Loses so many of 100 packets, each way; with 100 nothing passes and nothing tells.
    pub fn lose(&self, percent: u32) {
        self.keep();
        let some = match percent {
            100.. => String::new(),
            _ => format!("numgen random mod 100 < {percent}"),
        };
        self.both(&format!(
            "nft 'add table ip loss; add chain ip loss in {{ type filter hook prerouting priority 0; }}; \
             add rule ip loss in iifname {DEVICE} {some} drop'"
        ));
    }

    /// Loses none.
    pub fn keep(&self) {
        self.both("nft 'add table ip loss; delete table ip loss'");
    }

    /// The far end goes down: open connections hang without a word, new ones are not answered, and
    /// the client's device has no carrier.
    pub fn down(&self) {
        let set = self.server_side(&format!("ip link set {DEVICE} down"));
        set.expect("the link goes down");
    }

    /// The end of [`Net::down`].
    pub fn up(&self) {
        let set = self.server_side(&format!("ip link set {DEVICE} up"));
        set.expect("the link comes up");
    }

    /// What passed since the link was made.
    pub fn passed(&self) -> Passed {
        let table = self.counters();
        let line = table.lines().find_map(|l| {
            let (name, counts) = l.split_once(':')?;
            (name.trim() == DEVICE).then_some(counts)
        });
        let counts = line.expect("the link is there").split_whitespace();
        let counts: Vec<u64> = counts.map(|n| n.parse().expect("a count")).collect();
        Passed {
            down: counts[0],
            up: counts[8],
        }
    }

    fn both(&self, line: &str) {
        self.server_side(line).expect("the server's end");
        self.client_side(line).expect("the client's end");
    }
}
