//! The HTTP side: who may ask, how much, how long; then on to the worker.
//!
//! Every resource that a client can hold is bounded: connections, handshakes, headers, requests
//! at once, bytes of bodies in memory, the rate below which a body is given up. Work on files runs
//! on blocking threads, one container at a time each, and goes on to its end when the client goes
//! away or the agent is told to stop.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State as Extract};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::Response;
use axum::routing::{get, post};
use sync::wire::{self, ApplyRequest, ErrorCode, HealthAnswer};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::apply::Worker;
use crate::container::Known;
use crate::error::Fault;
use crate::state::State;

/// Body memory is counted in units of this many bytes.
const UNIT: usize = 1024;
/// Containers whose digests are remembered between requests.
const REMEMBERED: usize = 256;

/// Bounds on what clients can take. The defaults fit an agent for one office.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most bytes of a request's body; at most [`wire::MAX_BODY`].
    pub body: usize,
    /// Most bytes that a package may unpack to.
    pub package: u64,
    /// Most requests at once; the next one is told to come back.
    pub requests: usize,
    /// Most changes and reads of containers at once.
    pub workers: usize,
    /// Most connections at once; the next one is closed.
    pub connections: usize,
    /// For a TLS handshake, and then for the head of a request.
    pub head: Duration,
    /// For a body to move at all, and for an answer to be taken.
    pub idle: Duration,
    /// A body that arrives more slowly than this many bytes a second, after a start of
    /// [`Limits::idle`], is given up.
    pub slowest: u64,
    /// How long a request waits for another on the same container.
    pub wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 256 << 20,
            package: wire::MAX_UNPACKED,
            requests: 32,
            workers: 4,
            connections: 256,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            slowest: 1024,
            wait: Duration::from_secs(60),
        }
    }
}

type Slot = Arc<AsyncMutex<Option<Known>>>;

/// What all requests share.
pub struct Shared {
    /// Does the work.
    pub worker: Worker,
    /// Knows the client.
    pub state: State,
    /// The bounds.
    pub limits: Limits,
    requests: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    slots: Mutex<HashMap<String, Slot>>,
    stopping: AtomicBool,
}

impl Shared {
    /// Puts the parts together.
    pub fn new(worker: Worker, state: State, limits: Limits) -> Self {
        let units = (2 * limits.body.min(wire::MAX_BODY)).div_ceil(UNIT).max(1);
        Self {
            worker,
            state,
            requests: Arc::new(Semaphore::new(limits.requests)),
            bodies: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
            workers: Arc::new(Semaphore::new(limits.workers)),
            slots: Mutex::new(HashMap::new()),
            stopping: AtomicBool::new(false),
            limits,
        }
    }

    /// No new work is taken from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Returns when no container is being worked on. Call [`Shared::stop`] first.
    pub async fn idle(&self) {
        let all = u32::try_from(self.limits.workers).unwrap_or(u32::MAX);
        let _ = self.workers.acquire_many(all).await;
    }

    /// Finishes unfinished changes, one by one; one that fails does not stop the others.
    pub fn recover_all(&self) {
        for path in self.worker.site.unfinished() {
            let slot = self.slot(&path);
            let mut known = slot.blocking_lock();
            if let Err(fault) = self.worker.recover(&path, &mut known) {
                tracing::warn!(
                    container = path,
                    reason = fault.message,
                    "an unfinished change stays for later"
                );
            }
        }
    }

    fn slot(&self, path: &str) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= REMEMBERED {
            // What is not in use can be read again.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        Arc::clone(slots.entry(path.to_owned()).or_default())
    }

    /// Runs `work` on a blocking thread, alone on the container. It runs to its end, whatever
    /// becomes of the request.
    async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        path: String,
        work: impl FnOnce(&Worker, &mut Option<Known>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        wire::check_path(&path)
            .map_err(|e| Fault::new(ErrorCode::BadPath, format!("{path}: {e}")))?;
        let busy = || Fault::new(ErrorCode::Overloaded, format!("{path} is being worked on"));
        let deadline = Instant::now() + self.limits.wait;
        let mut slot: OwnedMutexGuard<Option<Known>> =
            timeout_at(deadline, self.slot(&path).lock_owned())
                .await
                .map_err(|_| busy())?;
        // After the container, so that those who wait for one do not keep others from theirs.
        let permit: OwnedSemaphorePermit =
            timeout_at(deadline, Arc::clone(&self.workers).acquire_owned())
                .await
                .ok()
                .and_then(Result::ok)
                .ok_or_else(busy)?;
        if self.stopping.load(Ordering::SeqCst) {
            return Err(stopping());
        }
        let shared = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&shared.worker, &mut slot);
            drop(slot);
            drop(permit);
            result
        });
        task.await.unwrap_or_else(|error| {
            tracing::error!(container = path, %error, "work on a container failed");
            Err(Fault::new(
                ErrorCode::Internal,
                format!("the agent failed on {path}"),
            ))
        })
    }

    /// Admits a request: known, and not too many at once.
    fn admit(&self, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, Fault> {
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("Bearer "));
        if !token.is_some_and(|token| self.state.knows(token)) {
            let message = "the agent does not know this client";
            return Err(Fault::new(ErrorCode::Unauthorized, message));
        }
        if self.stopping.load(Ordering::SeqCst) {
            return Err(stopping());
        }
        Arc::clone(&self.requests)
            .try_acquire_owned()
            .map_err(|_| Fault::new(ErrorCode::Overloaded, "the agent is busy"))
    }

    /// Reads a body within the bounds of size, memory and time.
    async fn body(&self, request: Request) -> Result<(Vec<u8>, OwnedSemaphorePermit), Fault> {
        let length = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse::<u64>().ok());
        let mut body = request.into_body();
        let limit = self.limits.body.min(wire::MAX_BODY);
        let fail = match length {
            None => Fault::new(ErrorCode::BadRequest, "the body's length is missing"),
            Some(n) if n > limit as u64 => Fault::new(
                ErrorCode::TooLarge,
                format!("a body of {n} bytes is over the limit of {limit}"),
            ),
            Some(n) => {
                let size = usize::try_from(n).unwrap_or(limit);
                return self.read_body(body, size).await;
            }
        };
        // A client that is still sending would not see the answer if we closed on it now.
        let drain = async {
            let mut left = DRAIN;
            while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                left = left.saturating_sub(frame.data_ref().map_or(0, axum::body::Bytes::len));
                if left == 0 {
                    break;
                }
            }
        };
        let _ = timeout(self.limits.head, drain).await;
        Err(fail)
    }

    async fn read_body(
        &self,
        mut body: Body,
        size: usize,
    ) -> Result<(Vec<u8>, OwnedSemaphorePermit), Fault> {
        let units = u32::try_from(size.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.bodies).acquire_many_owned(units);
        let room = timeout(self.limits.wait, room)
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| Fault::new(ErrorCode::Overloaded, "the agent is busy receiving"))?;
        let slow = || Fault::new(ErrorCode::TooSlow, "the body did not arrive in time");
        let begun = Instant::now();
        let mut bytes = Vec::new();
        loop {
            let seconds = bytes.len() as u64 / self.limits.slowest.max(1);
            let whole = begun + self.limits.idle + Duration::from_secs(seconds);
            let deadline = whole.min(Instant::now() + self.limits.idle);
            let frame = timeout_at(deadline, poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)))
                .await
                .map_err(|_| slow())?;
            let Some(frame) = frame else {
                return Ok((bytes, room));
            };
            let frame = frame.map_err(|e| {
                Fault::new(ErrorCode::BadRequest, format!("the body broke off: {e}"))
            })?;
            if let Some(data) = frame.data_ref() {
                if bytes.len() + data.len() > size {
                    let message = "the body is longer than it said";
                    return Err(Fault::new(ErrorCode::BadRequest, message));
                }
                bytes.extend_from_slice(data);
            }
        }
    }
}

/// Bytes of a refused body that are still taken.
const DRAIN: usize = 1 << 20;

/// All verbs.
pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/health", get(health))
        .route("/v1/containers", get(container))
        .route("/v1/inventory", get(inventory))
        .route("/v1/apply", post(apply))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(shared)
}

async fn health(Extract(shared): Extract<Arc<Shared>>, headers: HeaderMap) -> Response {
    answer(shared.admit(&headers).and_then(|_permit| {
        record(&HealthAnswer {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            max_body: shared.limits.body.min(wire::MAX_BODY) as u64,
            max_package: shared.limits.package,
        })
    }))
}

async fn container(
    Extract(shared): Extract<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let run = async {
        let _permit = shared.admit(&headers)?;
        let path = path_of(&uri)?;
        let of = path.clone();
        record(
            &shared
                .work(path, move |w, slot| w.container(&of, slot))
                .await?,
        )
    };
    answer(run.await)
}

async fn inventory(
    Extract(shared): Extract<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let run = async {
        let _permit = shared.admit(&headers)?;
        let path = path_of(&uri)?;
        let of = path.clone();
        record(
            &shared
                .work(path, move |w, slot| w.inventory(&of, slot))
                .await?,
        )
    };
    answer(run.await)
}

async fn apply(Extract(shared): Extract<Arc<Shared>>, request: Request) -> Response {
    let run = async {
        let _permit = shared.admit(request.headers())?;
        let (bytes, room) = shared.body(request).await?;
        let decoded = wire::decode::<ApplyRequest>(&bytes);
        drop(bytes);
        let request = decoded.map_err(|e| Fault::new(ErrorCode::BadRequest, e.to_string()))?;
        let path = request.container.clone();
        let work = move |worker: &Worker, slot: &mut Option<Known>| {
            // Held until the package is no longer in memory.
            let _room = room;
            worker.apply(&request, slot).inspect_err(|fault| {
                tracing::warn!(
                    container = request.container,
                    sequence = request.sequence,
                    code = ?fault.code,
                    reason = fault.message,
                    "not applied"
                );
            })
        };
        record(&shared.work(path, work).await?)
    };
    answer(run.await)
}

async fn unknown(Extract(shared): Extract<Arc<Shared>>, headers: HeaderMap) -> Response {
    answer(shared.admit(&headers).and_then(|_| {
        Err(Fault::new(
            ErrorCode::UnknownVerb,
            "the agent does not know this verb",
        ))
    }))
}

fn stopping() -> Fault {
    Fault::new(ErrorCode::Stopping, "the agent is stopping")
}

fn path_of(uri: &Uri) -> Result<String, Fault> {
    let query = uri.query().unwrap_or("");
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix("path="))
        .and_then(wire::decode_path)
        .ok_or_else(|| Fault::new(ErrorCode::BadRequest, "the query has no path"))
}

fn record<T: bincode::Encode>(value: &T) -> Result<Vec<u8>, Fault> {
    wire::encode(value).map_err(|e| Fault::new(ErrorCode::Internal, e.to_string()))
}

fn answer(result: Result<Vec<u8>, Fault>) -> Response {
    let (status, kind, bytes) = match result {
        Ok(bytes) => (200, wire::RECORD_TYPE, bytes),
        Err(fault) => {
            let body = fault.body();
            let json = serde_json::to_vec(&body).unwrap_or_default();
            (body.code.status(), "application/json", json)
        }
    };
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        axum::http::HeaderValue::from_static(kind),
    );
    response
}
