//! How much of the link may be used: rates as the user writes them, in bits a second.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::rules::{Outcome, bits};
use super::show_rate;

/// The smallest rate that can be asked for, in bits a second: less would make every program wait for
/// minutes.
const SMALLEST: f64 = 64_000.0;

/// Rates that are not to be exceeded, in bits a second; `None`: as much as goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cap {
    /// To the share and the agent.
    pub up: Option<u64>,
    /// From there.
    pub down: Option<u64>,
}

impl Cap {
    /// Nothing is limited.
    pub const NONE: Self = Self {
        up: None,
        down: None,
    };

    /// As it is written on a command line.
    #[must_use]
    pub fn words(self) -> String {
        // In thousands, as exactly as it is kept.
        let way = |name: &str, bits: Option<u64>| {
            bits.map(|bits| format!("{name} {}.{:03}k", bits / 1000, bits % 1000))
        };
        let words: Vec<String> = [way("up", self.up), way("down", self.down)]
            .into_iter()
            .flatten()
            .collect();
        if words.is_empty() {
            "unlimited".to_owned()
        } else {
            words.join(" ")
        }
    }

    /// As the drive takes it: bytes a second.
    #[must_use]
    pub fn rates(self) -> vfs::limit::Rates {
        let bytes = |bits: u64| (bits / 8).max(1);
        vfs::limit::Rates {
            up: self.up.map(bytes),
            down: self.down.map(bytes),
        }
    }
}

impl fmt::Display for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |bits: u64| show_rate(bits as f64);
        match (self.up, self.down) {
            (None, None) => write!(f, "no limit"),
            (Some(up), Some(down)) if up == down => write!(f, "{} each way", show(up)),
            (Some(up), Some(down)) => write!(f, "{} up, {} down", show(up), show(down)),
            (Some(up), None) => write!(f, "{} up", show(up)),
            (None, Some(down)) => write!(f, "{} down", show(down)),
        }
    }
}

impl Outcome for Cap {
    const WANTED: &'static str =
        "a rate of at least 64k, as in `500k`, `up 64k down 2M` or `down 1M`, or `unlimited`";

    fn read(words: &[String]) -> Option<(Self, usize)> {
        let rate = |at: usize| {
            let bits = bits(words.get(at)?).filter(|bits| *bits >= SMALLEST)?;
            // Far below what a float holds exactly.
            Some(bits as u64)
        };
        let way = |at: usize, name: &str| {
            let is = words.get(at).is_some_and(|word| word == name);
            is.then(|| rate(at + 1))
        };
        if words.first()? == "unlimited" {
            return Some((Self::NONE, 1));
        }
        if let Some(both) = rate(0) {
            let cap = Self {
                up: Some(both),
                down: Some(both),
            };
            return Some((cap, 1));
        }
        // Either way may come first; one that is named has a rate.
        let (mut cap, mut at) = (Self::NONE, 0);
        while at < words.len() {
            match (way(at, "up"), way(at, "down")) {
                (Some(up), _) if cap.up.is_none() => cap.up = Some(up?),
                (_, Some(down)) if cap.down.is_none() => cap.down = Some(down?),
                _ => break,
            }
            at += 2;
        }
        (at > 0).then_some((cap, at))
    }
}

impl FromStr for Cap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<String> = text
            .split_whitespace()
            .map(str::to_ascii_lowercase)
            .collect();
        match Self::read(&words) {
            Some((cap, used)) if used == words.len() => Ok(cap),
            _ => Err(format!("{text} is no limit: give {}", Self::WANTED)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::{Rules, parse};
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_written() {
        let cap = |up, down| Ok(Cap { up, down });
        for (text, want) in [
            ("500k", cap(Some(500_000), Some(500_000))),
            ("Up 64K", cap(Some(64_000), None)),
            ("down 2M up 1.5m", cap(Some(1_500_000), Some(2_000_000))),
            ("unlimited", cap(None, None)),
        ] {
            assert_eq!(text.parse::<Cap>(), want, "{text}");
            let words = want.clone().unwrap().words();
            assert_eq!(words.parse::<Cap>(), want, "{words}");
        }
        for text in [
            "",
            "0",
            "5",
            "63k",
            "500",
            "up",
            "up 1M up 2M",
            "500k 2M",
            "1M down",
            "-5M",
            "nan",
            "1e9k",
        ] {
            assert!(text.parse::<Cap>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_day_of_limits_is_read_with_the_language_of_the_rules() {
        let text = "when metered then up 64k down 256k\n\
                    when time 09:00-17:00 and not network \"home\" then 500k # in the office\n\
                    otherwise unlimited";
        let rules: Rules<Cap> = parse(text).unwrap();
        let caps: Vec<String> = rules.0.iter().map(|r| r.then.to_string()).collect();
        assert_eq!(
            caps,
            [
                "64 kbit/s up, 256 kbit/s down",
                "500 kbit/s each way",
                "no limit"
            ]
        );
        let wrong = parse::<Cap>("when metered then cached").unwrap_err();
        assert!(wrong.message.contains("a rate of at least 64k"), "{wrong}");
        assert_eq!(wrong.column, 19);
    }
}
