//! A progress bar on standard error, where that is a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far a command is. Says nothing where nobody looks.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub fn new() -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = ProgressStyle::with_template("{msg:20} {wide_bar} {percent:>3}%");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// `done` of `all` of what `doing` says.
    pub fn at(&self, doing: &str, done: u64, all: u64) {
        self.0.set_message(doing.to_owned());
        self.0.set_length(all);
        self.0.set_position(done);
    }

    pub fn done(&self) {
        self.0.finish_and_clear();
    }
}
