//! Results to standard output: text for people, or with `--json` one JSON value a line.
//!
//! Text that came from outside (subjects, file names, an agent's message) may hold terminal control
//! sequences: [`clean`] makes it harmless before it is shown to a person. JSON escapes by itself.

use std::fmt;
use std::io::{self, BufWriter, StdoutLock, Write};

use serde::Serialize;

use crate::error::UserError;

/// How results are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Text for people.
    Human,
    /// One JSON value a line.
    Json,
}

/// Buffered standard output. [`Output::finish`] must be called: it reports the last write's error.
pub struct Output {
    format: Format,
    out: BufWriter<StdoutLock<'static>>,
}

impl Output {
    /// Standard output in this format.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self {
            format,
            out: BufWriter::with_capacity(64 * 1024, io::stdout().lock()),
        }
    }

    /// The format asked for.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// One line of text, as it is.
    ///
    /// # Errors
    /// Standard output does not take it.
    pub fn line(&mut self, text: impl fmt::Display) -> Result<(), UserError> {
        writeln!(self.out, "{text}").map_err(|e| UserError::output(&e))
    }

    /// One JSON value as a line.
    ///
    /// # Errors
    /// Standard output does not take it, or the value cannot be JSON (a path that is not UTF-8).
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), UserError> {
        let text = serde_json::to_string(value).map_err(|e| {
            UserError::new(
                "json",
                format!("the result cannot be written as JSON: {e}"),
                "run the command without --json",
            )
        })?;
        self.line(text)
    }

    /// The value as JSON, or what `human` writes.
    ///
    /// # Errors
    /// As [`Output::json`].
    pub fn result(
        &mut self,
        value: &impl Serialize,
        human: impl FnOnce(&mut Self) -> Result<(), UserError>,
    ) -> Result<(), UserError> {
        if self.is_json() {
            self.json(value)
        } else {
            human(self)
        }
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// Standard output does not take it.
    pub fn finish(&mut self) -> Result<(), UserError> {
        self.out.flush().map_err(|e| UserError::output(&e))
    }
}

/// Writes an error to standard error, as the head of `crate::error` says. Errors of standard error
/// itself have nowhere to go.
pub fn report(format: Format, error: &UserError) {
    if error.code == UserError::OUTPUT_CLOSED {
        return;
    }
    let mut err = io::stderr().lock();
    let _ = match format {
        Format::Json => writeln!(err, "{}", serde_json::json!({ "error": error })),
        Format::Human => {
            let (message, next) = (clean(&error.message), clean(&error.next));
            writeln!(err, "error: {message}\n next: {next}")
        }
    };
    let _ = err.flush();
}

/// Text from outside with every control character and every character that turns the writing
/// direction shown as its code (`\u{1b}`), so that it cannot steer a terminal or break a line.
#[must_use]
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let steers = c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if steers {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// A size in bytes for people: `1,234 bytes`, `12.3 MiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 10_000 {
        return format!("{} bytes", count(bytes));
    }
    // Tenths of a unit in integers: exact, and no rounding surprises at the borders.
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or("KiB");
    for next in units {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A number with thousands separated: `1,234,567`.
#[must_use]
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_are_shown_not_sent() {
        assert_eq!(clean("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\u{a}c");
        assert_eq!(clean("x\u{202e}y"), "x\\u{202e}y");
        assert_eq!(clean("Grüße, 日本"), "Grüße, 日本");
    }

    #[test]
    fn sizes_and_counts() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(size(9_999), "9,999 bytes");
        assert_eq!(size(10_240), "10.0 KiB");
        assert_eq!(size(271_360), "265.0 KiB");
        assert_eq!(size(258 << 20), "258.0 MiB");
        assert_eq!(size(u64::MAX), "16383.9 PiB");
    }
}
