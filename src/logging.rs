//! Logs: `tracing` with fields, to standard error.
//!
//! The level comes from `-v` (repeatable), or wholly from `RUST_LOG` where it is set; only the binary
//! reads that variable. Commands are quiet by default, the long-running ones tell what they do.
//! Secrets cannot be logged: they live in [`crate::secret::Secret`], which has no `Debug`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::error::UserError;
use crate::output::Format;

/// Our own crates, by library name: `-v` speaks about these, others stay at warnings.
const OURS: [&str; 6] = ["pstsyncd", "vfs", "sync", "agent", "pst", "storage"];

/// Starts logging. `verbose` counts the `-v`s; `long_running` starts one step louder.
///
/// # Errors
/// `RUST_LOG` is no filter. A second call in one process does nothing.
pub fn init(verbose: u8, long_running: bool, format: Format) -> Result<(), UserError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|e| {
            UserError::new(
                "bad-log-filter",
                format!("RUST_LOG is not a log filter: {e}"),
                "unset it, or set it to something like info or sync=debug,warn",
            )
        })?,
        _ => EnvFilter::new(default_filter(
            verbose.saturating_add(u8::from(long_running)),
        )),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let _ = match format {
        Format::Json => builder.json().try_init(),
        Format::Human => builder
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
    };
    Ok(())
}

fn default_filter(level: u8) -> String {
    let ours = match level {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let mut filter = String::from("warn");
    for name in OURS {
        filter.push_str(&format!(",{name}={ours}"));
    }
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbosity_raises_only_our_own_crates() {
        assert!(default_filter(2).starts_with("warn,pstsyncd=debug,"));
        for level in 0..5 {
            assert!(EnvFilter::try_new(default_filter(level)).is_ok());
        }
    }
}
