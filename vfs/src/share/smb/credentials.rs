//! What an account proves itself with.

use super::kerberos::Tickets;

/// A password. It cannot be printed.
#[derive(Clone)]
pub struct Password(String);

impl Password {
    /// Wraps a password.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

/// What an account proves itself with.
#[derive(Clone)]
pub enum Credentials {
    /// Its password (NTLMv2).
    Password(Password),
    /// A Kerberos ticket.
    Kerberos(Tickets),
}

impl From<Password> for Credentials {
    fn from(password: Password) -> Self {
        Self::Password(password)
    }
}

impl From<Tickets> for Credentials {
    fn from(tickets: Tickets) -> Self {
        Self::Kerberos(tickets)
    }
}
