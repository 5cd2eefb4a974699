//! The plot of a link's day as an SVG: rate set and measured, round trip, state, and how long each
//! operation of the application took.

use std::fmt::Write;
use std::ops::Range;
use std::time::Duration;

/// One call of the application.
pub struct Operation {
    pub at: Duration,
    pub took: Duration,
}

/// What the drive said at one moment.
pub struct Sample {
    pub at: Duration,
    /// Bits a second.
    pub down: Option<f64>,
    /// Milliseconds.
    pub round_trip: Option<f64>,
    pub state: String,
}

/// Everything that is drawn.
#[derive(Default)]
pub struct Plot {
    /// From when on which rate was set, in bits a second; 0: the link was down.
    pub steps: Vec<(Duration, u64)>,
    pub samples: Vec<Sample>,
    pub operations: Vec<Operation>,
}

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 70.0;

impl Plot {
    fn end(&self) -> f64 {
        self.samples.last().map_or(1.0, |s| s.at.as_secs_f64())
    }

    fn x(&self, at: Duration) -> f64 {
        LEFT + at.as_secs_f64() / self.end() * WIDTH
    }

    fn rate(&self, at: Duration) -> u64 {
        let before = self.steps.iter().rev().find(|(from, _)| *from <= at);
        before.map_or(0, |s| s.1)
    }

    /// When the drive was in `state` while `rate` was set, from one look to the next.
    pub fn times(&self, state: &str, rate: u64) -> Vec<Range<Duration>> {
        let pairs = self.samples.windows(2).filter(|pair| {
            let both = pair.iter().all(|s| s.state == state);
            both && pair.iter().all(|s| self.rate(s.at) == rate)
        });
        pairs.map(|pair| pair[0].at..pair[1].at).collect()
    }

    /// The drawing.
    pub fn svg(&self) -> String {
        let mut out = String::from(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1100\" height=\"620\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"1100\" height=\"620\" \
             fill=\"white\"/>\n",
        );
        self.panel(&mut out, 20.0, "rate, bit/s", (1e5, 1e9), |p, y| p.rates(y));
        self.panel(&mut out, 220.0, "round trip, ms", (1.0, 1e4), |p, y| {
            p.trips(y)
        });
        self.panel(&mut out, 420.0, "operations, ms", (0.001, 1e4), |p, y| {
            p.latencies(y)
        });
        for pair in self.samples.windows(2) {
            let (from, to) = (self.x(pair[0].at), self.x(pair[1].at));
            let colour = match pair[0].state.as_str() {
                "online" => "#4caf50",
                "cached" => "#ffb300",
                _ => "#9e9e9e",
            };
            let width = to - from;
            let _ = writeln!(
                out,
                "<rect x=\"{from:.1}\" y=\"595\" width=\"{width:.1}\" height=\"14\" fill=\"{colour}\"/>"
            );
        }
        let _ = writeln!(out, "<text x=\"5\" y=\"607\">state</text>");
        out.push_str("</svg>\n");
        out
    }

    fn panel(
        &self,
        out: &mut String,
        top: f64,
        title: &str,
        (low, high): (f64, f64),
        draw: impl Fn(&Self, &dyn Fn(f64) -> f64) -> String,
    ) {
        let height = 160.0;
        let y = |value: f64| {
            let part = (value.clamp(low, high) / low).ln() / (high / low).ln();
            top + height * (1.0 - part)
        };
        let _ = writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"{:.0}\">{title}</text>",
            top - 5.0
        );
        let mut line = low;
        while line <= high * 1.01 {
            let at = y(line);
            let _ = writeln!(
                out,
                "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"5\" y=\"{at:.1}\">{line}</text>",
                LEFT + WIDTH
            );
            line *= 10.0;
        }
        out.push_str(&draw(self, &y));
    }

    fn line(&self, points: impl Iterator<Item = (f64, f64)>, colour: &str) -> String {
        let points: Vec<_> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let points = points.join(" ");
        format!("<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\"/>\n")
    }

    fn rates(&self, y: &dyn Fn(f64) -> f64) -> String {
        let set = self.samples.iter().map(|s| {
            let rate = self.rate(s.at) as f64;
            (self.x(s.at), y(rate))
        });
        let measured = self.samples.iter();
        let measured = measured.filter_map(|s| Some((self.x(s.at), y(s.down?))));
        self.line(set, "#999") + &self.line(measured, "#1565c0")
    }

    fn trips(&self, y: &dyn Fn(f64) -> f64) -> String {
        let measured = self.samples.iter();
        let measured = measured.filter_map(|s| Some((self.x(s.at), y(s.round_trip?))));
        self.line(measured, "#1565c0")
    }

    fn latencies(&self, y: &dyn Fn(f64) -> f64) -> String {
        let dots = self.operations.iter().map(|o| {
            let (x, y) = (self.x(o.at), y(o.took.as_secs_f64() * 1e3));
            format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1\" fill=\"#c62828\"/>\n")
        });
        dots.collect()
    }
}
