//! A value that must not be printed.

/// Holds a secret (a token). It has no `Debug`, `Display` or `Serialize`, so a struct that holds
/// one cannot be logged or answered whole by accident; [`Secret::expose`] is the only way in.
#[derive(Clone)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps a secret.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The secret itself, for the one place that sends it.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}
