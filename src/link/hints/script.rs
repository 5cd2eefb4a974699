//! Hints, clock and figures out of a file, for the tests that play a day through the daemon. It is not
//! in release builds.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{Hints, NetworkHints};
use crate::link::{Figure, Figures};
use crate::policy::Seen;

/// What the file says, in JSON; read at every look.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Moment {
    /// Minute of the day.
    minute: Option<u16>,
    metered: Option<bool>,
    on_battery: Option<bool>,
    networks: Option<Vec<String>>,
    /// Rates in bits a second and round trip in milliseconds, in place of all figures.
    link: Option<Link>,
    stay_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Link {
    up: Option<f64>,
    down: Option<f64>,
    round_trip: Option<f64>,
}

/// The file.
pub struct Script(PathBuf);

impl Script {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    fn now(&self) -> Moment {
        let text = std::fs::read(&self.0).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, "the test's day cannot be read");
            Moment::default()
        })
    }
}

impl NetworkHints for Script {
    fn look(&self) -> Hints {
        let moment = self.now();
        Hints {
            metered: moment.metered,
            on_battery: moment.on_battery,
            networks: moment.networks,
            changes: 0,
        }
    }

    fn play(&self, seen: &mut Seen) {
        let moment = self.now();
        seen.minute = moment.minute.unwrap_or(seen.minute);
        if let Some(link) = moment.link {
            let figure = |value: Option<f64>| {
                value.map(|value| Figure {
                    value,
                    confidence: 0.9,
                    age: Duration::ZERO,
                })
            };
            seen.figures = Figures {
                up: figure(link.up),
                down: figure(link.down),
                round_trip: figure(link.round_trip),
                ..Figures::default()
            };
        }
    }

    fn stay(&self) -> Option<Duration> {
        self.now().stay_ms.map(Duration::from_millis)
    }
}
