//! The client of an agent: blocking calls, each bounded in time and in memory.
//!
//! Calls may be made from any thread, also from one that drives async tasks (it blocks there).
//! The network is served by a small runtime of the client's own.

mod exchange;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, Url};

use self::exchange::{CountedBody, Event, Failure, exchange};
pub use self::exchange::{Throttle, Way};
use crate::pin;
use crate::record::RecordError;
use crate::wire::{
    self, ApplyAnswer, ApplyRequest, ClientId, ContainerAnswer, ErrorBody, ErrorCode, Generation,
    HealthAnswer, InventoryAnswer, Invitation,
};

/// How long to wait. Each phase has its own bound, so that a large upload over a poor link is
/// fine as long as it moves.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To connect, TLS included.
    pub connect: Duration,
    /// Without a byte moving, while a body is sent or received.
    pub idle: Duration,
    /// From the last byte sent to the first byte of the answer: the agent works.
    pub answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            answer: Duration::from_secs(600),
        }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The invitation cannot be read, or is not one.
    #[error("{path}: {detail}; get `client.json` from the agent's state directory again")]
    Invitation {
        /// The file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The client could not be set up.
    #[error("the agent's client could not start: {0}")]
    Setup(String),
    /// Nothing answered.
    #[error("the agent at {url} cannot be reached ({detail}); check that it runs and the network")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// What the network said.
        detail: String,
    },
    /// Something answered, but it is not the agent that was pinned, or its certificate is bad.
    #[error(
        "{url} is not the agent that this client was invited by ({detail}); nothing was sent. \
         If the agent was set up anew, take its new client.json"
    )]
    NotTheAgent {
        /// Where it should be.
        url: String,
        /// What is wrong with the certificate.
        detail: String,
    },
    /// A phase took longer than its bound.
    #[error("the agent at {url} did not answer in time ({phase})")]
    Timeout {
        /// Where it is.
        url: String,
        /// What was waited for.
        phase: &'static str,
    },
    /// The agent refused or failed; what it said.
    #[error("{}{}{}", .0.message, if .0.next.is_empty() { "" } else { "; " }, .0.next)]
    Refused(Box<ErrorBody>),
    /// The answer makes no sense.
    #[error("the agent at {url} answered something that is not understood: {detail}")]
    Protocol {
        /// Where it is.
        url: String,
        /// What was wrong.
        detail: String,
    },
    /// The package is larger than the agent takes.
    #[error("the package takes {size} bytes; at most {limit} can be sent at once")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

impl ClientError {
    /// The same call may succeed later.
    #[must_use]
    pub fn retry(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => true,
            Self::Refused(body) => body.retry,
            _ => false,
        }
    }

    /// Nothing answered: the link or the agent is down.
    #[must_use]
    pub const fn offline(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. })
    }

    /// What the agent said, if it did.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(body) => Some(body.code),
            _ => None,
        }
    }
}

/// An inventory as an agent read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteRows {
    /// The exact bytes that it was read from.
    pub generation: Generation,
    /// Its digest.
    pub digest: [u8; 32],
    /// The encoded rows.
    pub rows: Vec<u8>,
}

/// What to apply; see [`ApplyRequest`].
#[derive(Clone, Copy, Debug)]
pub struct Apply<'a> {
    /// Who asks.
    pub client: ClientId,
    /// Path of the container beneath the agent's root.
    pub container: &'a str,
    /// Rises with every package for this container.
    pub sequence: u64,
    /// The bytes that the package was made for.
    pub base: Option<Generation>,
    /// The inventory digest that must result where no object gets another NID.
    pub expected: [u8; 32],
    /// The encoded package.
    pub package: &'a [u8],
}

/// An applied package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// What the agent answered.
    pub answer: ApplyAnswer,
    /// Bytes of the request's body (TLS and HTTP framing not counted).
    pub bytes_sent: u64,
}

/// A client of one agent. Cheap to keep; connections are reused.
pub struct AgentClient {
    http: reqwest::Client,
    runtime: Option<tokio::runtime::Runtime>,
    url: Url,
    authorization: reqwest::header::HeaderValue,
    timeouts: Timeouts,
    throttle: Option<Arc<dyn Throttle>>,
}

impl std::fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentClient")
            .field("url", &self.url.as_str())
            .finish_non_exhaustive()
    }
}

impl Drop for AgentClient {
    fn drop(&mut self) {
        // An ordinary drop of a runtime panics on a thread that drives async tasks.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Reads an invitation file.
///
/// # Errors
/// [`ClientError::Invitation`].
pub fn load_invitation(path: &Path) -> Result<Invitation, ClientError> {
    let wrong = |detail: String| ClientError::Invitation {
        path: path.display().to_string(),
        detail,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| io::Read::read_to_end(&mut io::Read::take(file, 64 << 10), &mut bytes))
        .map_err(|e| wrong(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| wrong(format!("not an invitation ({e})")))
}

impl AgentClient {
    /// A client for the agent that made `invitation`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::Setup`] for a URL that is not `https://`, or a token that is not text.
    pub fn new(invitation: &Invitation, timeouts: Timeouts) -> Result<Self, ClientError> {
        let setup = |detail: String| ClientError::Setup(detail);
        let url = Url::parse(&invitation.url)
            .map_err(|e| setup(format!("{} is no URL: {e}", invitation.url)))?;
        if url.scheme() != "https" || url.host().is_none() {
            return Err(setup(format!(
                "{} does not begin with https://",
                invitation.url
            )));
        }
        let mut authorization =
            reqwest::header::HeaderValue::from_str(&format!("Bearer {}", invitation.token))
                .map_err(|_| setup("the token is not text".to_owned()))?;
        authorization.set_sensitive(true);
        let tls =
            pin::client_config(invitation.ca_fingerprint).map_err(|e| setup(e.to_string()))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(timeouts.connect)
            .tcp_keepalive(Duration::from_secs(15))
            // Less than an agent keeps an idle connection: a request is not sent into its closing.
            .pool_idle_timeout(Duration::from_secs(5))
            .build()
            .map_err(|e| setup(chain(&e)))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("agent-client")
            .enable_all()
            .build()
            .map_err(|e| setup(e.to_string()))?;
        Ok(Self {
            http,
            runtime: Some(runtime),
            url,
            authorization,
            timeouts,
            throttle: None,
        })
    }

    /// What goes to the agent and comes from it keeps to this limit from now on.
    #[must_use]
    pub fn throttled(mut self, throttle: Arc<dyn Throttle>) -> Self {
        self.throttle = Some(throttle);
        self
    }

    /// Where the agent is.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Whether the agent is there, and its limits.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn health(&self) -> Result<HealthAnswer, ClientError> {
        self.get("v1/health", None)
    }

    /// The state of a container.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn container(&self, path: &str) -> Result<ContainerAnswer, ClientError> {
        self.get("v1/containers", Some(path))
    }

    /// The inventory of a container.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn inventory(&self, path: &str) -> Result<RemoteRows, ClientError> {
        let answer: InventoryAnswer = self.get("v1/inventory", Some(path))?;
        let rows = wire::unpack(&answer.rows, wire::MAX_UNPACKED)
            .map_err(|e| self.protocol(format!("the inventory {e}")))?;
        Ok(RemoteRows {
            generation: answer.generation,
            digest: answer.digest,
            rows,
        })
    }

    /// Applies a package; `progress` is told the bytes sent so far and in all.
    ///
    /// After an error with [`ClientError::offline`] it is unknown whether it was applied: the same
    /// call again, with the same sequence and package, gives the first answer or applies it (R7).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn apply(
        &self,
        apply: &Apply<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Sent, ClientError> {
        let size = apply.package.len() as u64;
        if size > wire::MAX_UNPACKED {
            return Err(ClientError::TooLarge {
                size,
                limit: wire::MAX_UNPACKED,
            });
        }
        let request = ApplyRequest {
            client: apply.client,
            container: apply.container.to_owned(),
            sequence: apply.sequence,
            digest: *blake3::hash(apply.package).as_bytes(),
            base: apply.base,
            expected: apply.expected,
            package: wire::frame(apply.package)
                .map_err(|e| ClientError::Setup(format!("the package does not pack: {e}")))?,
        };
        let body = wire::encode(&request)
            .map_err(|e| ClientError::Setup(format!("the request does not encode: {e}")))?;
        let bytes_sent = body.len() as u64;
        if body.len() > wire::MAX_BODY {
            let limit = wire::MAX_BODY as u64;
            return Err(ClientError::TooLarge {
                size: bytes_sent,
                limit,
            });
        }
        let bytes = self.call(Method::POST, "v1/apply", None, Some(body.into()), progress)?;
        let answer: ApplyAnswer = self.decode(&bytes)?;
        if answer.sequence != request.sequence || answer.digest != request.digest {
            return Err(self.protocol("the answer is to another request".to_owned()));
        }
        Ok(Sent { answer, bytes_sent })
    }

    fn get<T: bincode::Decode<()>>(
        &self,
        verb: &str,
        path: Option<&str>,
    ) -> Result<T, ClientError> {
        let bytes = self.call(Method::GET, verb, path, None, &mut |_, _| {})?;
        self.decode(&bytes)
    }

    fn decode<T: bincode::Decode<()>>(&self, bytes: &[u8]) -> Result<T, ClientError> {
        wire::decode(bytes).map_err(|e: RecordError| self.protocol(e.to_string()))
    }

    fn protocol(&self, detail: String) -> ClientError {
        ClientError::Protocol {
            url: self.url().to_owned(),
            detail,
        }
    }

    /// Sends a request on the runtime and waits here, with a bound for each phase.
    fn call(
        &self,
        method: Method,
        verb: &str,
        path: Option<&str>,
        body: Option<Bytes>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<u8>, ClientError> {
        let mut url = self
            .url
            .join(verb)
            .map_err(|e| ClientError::Setup(e.to_string()))?;
        if let Some(path) = path {
            url.set_query(Some(&format!("path={}", wire::encode_path(path))));
        }
        let (tx, rx) = mpsc::channel();
        let total = body.as_ref().map_or(0, |b| b.len() as u64);
        let mut request = self
            .http
            .request(method, url)
            .header(reqwest::header::AUTHORIZATION, self.authorization.clone());
        if let Some(data) = body {
            request = request
                .header(reqwest::header::CONTENT_TYPE, wire::RECORD_TYPE)
                .body(reqwest::Body::wrap(CountedBody::new(
                    data,
                    tx.clone(),
                    self.throttle.clone(),
                )));
        }
        let Some(runtime) = &self.runtime else {
            return Err(ClientError::Setup("the client was closed".to_owned()));
        };
        let throttle = self.throttle.clone();
        let task = runtime.spawn(async move {
            let result = exchange(request, &tx, throttle.as_deref()).await;
            // The receiver is gone only if the caller gave up waiting.
            let _ = tx.send(Event::Done(result));
        });
        let mut all_sent = total == 0;
        let (mut wait, mut phase) = if all_sent {
            (
                self.timeouts.connect + self.timeouts.answer,
                "waiting for the answer",
            )
        } else {
            (self.timeouts.connect + self.timeouts.idle, "sending")
        };
        loop {
            match rx.recv_timeout(wait) {
                Ok(Event::Sent(sent)) => {
                    progress(sent, total);
                    all_sent |= sent >= total;
                    (wait, phase) = if all_sent {
                        (self.timeouts.answer, "waiting for the answer")
                    } else {
                        (self.timeouts.idle, "sending")
                    };
                }
                Ok(Event::Held) => {}
                Ok(Event::Received) => (wait, phase) = (self.timeouts.idle, "receiving"),
                Ok(Event::Done(result)) => {
                    return match result {
                        Ok((status, bytes)) => self.interpret(status, bytes),
                        Err(failure) => Err(self.failed(failure)),
                    };
                }
                Err(RecvTimeoutError::Timeout) => {
                    task.abort();
                    return Err(ClientError::Timeout {
                        url: self.url().to_owned(),
                        phase,
                    });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(ClientError::Setup(
                        "the client's runtime stopped".to_owned(),
                    ));
                }
            }
        }
    }

    fn interpret(&self, status: u16, bytes: Vec<u8>) -> Result<Vec<u8>, ClientError> {
        if status == 200 {
            return Ok(bytes);
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => Err(ClientError::Refused(Box::new(body))),
            Err(_) => Err(self.protocol(format!("HTTP status {status}"))),
        }
    }

    fn failed(&self, failure: Failure) -> ClientError {
        let url = self.url().to_owned();
        match failure {
            Failure::TooLong(limit) => ClientError::Protocol {
                url,
                detail: format!("more than {limit} bytes"),
            },
            Failure::Http(error) => match certificate_error(&error) {
                Some(detail) => ClientError::NotTheAgent { url, detail },
                None if error.is_builder() => ClientError::Setup(chain(&error)),
                None => ClientError::Unreachable {
                    url,
                    detail: chain(&error),
                },
            },
        }
    }
}

/// The reasons of an error, from the outermost in, each once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = at {
        let text = e.to_string();
        // reqwest puts the URL in front; the caller names it already.
        if !e.is::<reqwest::Error>() && !parts.iter().any(|p| p.contains(&text)) {
            parts.push(text);
        }
        at = e.source();
    }
    if parts.is_empty() {
        error.to_string()
    } else {
        parts.join(": ")
    }
}

/// What is wrong with the server's certificate, if that is why it failed.
fn certificate_error(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = at {
        let tls = e.downcast_ref::<rustls::Error>().or_else(|| {
            // The source of an I/O error is that of its payload: look at the payload itself.
            let inner = e.downcast_ref::<io::Error>()?.get_ref()?;
            inner.downcast_ref::<rustls::Error>().or_else(|| {
                inner
                    .downcast_ref::<io::Error>()?
                    .get_ref()?
                    .downcast_ref::<rustls::Error>()
            })
        });
        match tls {
            Some(rustls::Error::InvalidCertificate(
                rustls::CertificateError::ApplicationVerificationFailure,
            )) => return Some("another certificate authority".to_owned()),
            Some(rustls::Error::InvalidCertificate(reason)) => return Some(reason.to_string()),
            Some(rustls::Error::NoCertificatesPresented) => {
                return Some("no certificate".to_owned());
            }
            _ => {}
        }
        at = e.source();
    }
    None
}
