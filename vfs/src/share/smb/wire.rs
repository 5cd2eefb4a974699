//! The TCP connection under the client library, and what the library leaves out of NEGOTIATE.
//!
//! The library speaks every cipher, but does not set the capability bit that says so; servers
//! then refuse shares that require encryption (Samba: `smb encrypt = required`). [`Wire`] sets the
//! bit in the one NEGOTIATE request that passes. From SMB 3.1.1 on, both sides hash the bytes of
//! the negotiation into the session's keys (MS-SMB2 3.2.5.2), so the hash that the library took of
//! its own bytes is replaced by that of the bytes which were sent ([`Tap::correct`]): the integrity
//! of the negotiation stays protected, including this bit.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use smb2::client::Connection;
use smb2::crypto::kdf::PreauthHasher;
use smb2::transport::{ReceiveProgress, TransportReceive, TransportSend};

use super::socket::Socket;

/// MS-SMB2 2.2.1.2: length of a header, where it has its command, and NEGOTIATE's number.
pub(super) const HEADER: usize = 64;
const COMMAND: usize = 12;
const NEGOTIATE: [u8; 2] = [0, 0];
/// MS-SMB2 2.2.3: SecurityMode and Capabilities of a NEGOTIATE request.
const CAPABILITIES: usize = HEADER + 8;
const CAP_ENCRYPTION: u8 = 0x40;

/// One TCP connection.
pub(super) struct Wire {
    tcp: Socket,
    tap: Arc<Tap>,
}

/// What passed on a connection.
pub(super) struct Tap {
    negotiation: Mutex<Negotiation>,
    progress: Option<Arc<ReceiveProgress>>,
}

#[derive(Default)]
struct Negotiation {
    request: Option<Vec<u8>>,
    answer: Option<Vec<u8>>,
}

impl Wire {
    pub(super) fn new(tcp: Socket) -> (Arc<Self>, Arc<Tap>) {
        let tap = Arc::new(Tap {
            negotiation: Mutex::default(),
            progress: tcp.receive_progress(),
        });
        let wire = Arc::new(Self {
            tcp,
            tap: tap.clone(),
        });
        (wire, tap)
    }
}

impl Tap {
    fn negotiation(&self) -> std::sync::MutexGuard<'_, Negotiation> {
        self.negotiation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The request to send instead of `data`, where it is the NEGOTIATE.
    fn rewrite(&self, data: &[u8]) -> Option<Vec<u8>> {
        let mut seen = self.negotiation();
        if seen.request.is_some() || data.get(COMMAND..COMMAND + 2) != Some(&NEGOTIATE[..]) {
            return None;
        }
        let mut data = data.to_vec();
        *data.get_mut(CAPABILITIES)? |= CAP_ENCRYPTION;
        seen.request = Some(data.clone());
        Some(data)
    }

    fn heard(&self, data: &[u8]) {
        let mut seen = self.negotiation();
        if seen.request.is_some() && seen.answer.is_none() {
            seen.answer = Some(data.to_vec());
        }
    }

    /// Gives the connection the hash of what was really sent and answered. Call it between
    /// NEGOTIATE and SESSION_SETUP.
    pub(super) fn correct(&self, conn: &Connection) {
        let seen = self.negotiation();
        let (Some(request), Some(answer)) = (&seen.request, &seen.answer) else {
            return;
        };
        let mut hash = PreauthHasher::new();
        hash.update(request);
        hash.update(answer);
        conn.with_preauth_hasher_mut(|h| *h = hash);
    }

    /// NEGOTIATE as it was sent, and as it was answered.
    pub(super) fn negotiated(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let seen = self.negotiation();
        Some((seen.request.clone()?, seen.answer.clone()?))
    }

    /// When the server last sent a byte.
    pub(super) fn last_byte(&self) -> Option<Instant> {
        self.progress.as_ref()?.snapshot().last_byte_at
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = smb2::Result<T>> + Send + 'a>>;

impl TransportSend for Wire {
    fn send<'a, 'b, 'c>(&'a self, data: &'b [u8]) -> Answer<'c, ()>
    where
        'a: 'c,
        'b: 'c,
    {
        match self.tap.rewrite(data) {
            Some(data) => Box::pin(async move { self.tcp.send(&data).await }),
            None => self.tcp.send(data),
        }
    }
}

impl TransportReceive for Wire {
    fn receive<'a, 'c>(&'a self) -> Answer<'c, Vec<u8>>
    where
        'a: 'c,
    {
        Box::pin(async move {
            let data = self.tcp.receive().await?;
            self.tap.heard(&data);
            Ok(data)
        })
    }

    fn receive_progress(&self) -> Option<Arc<ReceiveProgress>> {
        self.tap.progress.clone()
    }
}
