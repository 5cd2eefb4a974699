//! Local placement (DESIGN 6): the agent's own work on a share, without a server.
//!
//! The daemon applies change lists to the PST on the share itself, where the link is good or no agent is
//! to be had. It does so exactly as an agent beside it would: alone with the file, redo sidecar, ordered
//! phases, re-read, and the same records that make every sequence happen once.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sync::wire::{self, ApplyRequest, ClientId, ErrorCode};
use sync::{
    ApplyAnswer, ApplyJob, ApplyOutcome, Destination, RemoteInventory, SyncError, decode_inventory,
};

use crate::apply::Worker;
use crate::container::Known;
use crate::engine::Engine;
use crate::error::Fault;
use crate::exclusive::Exclusivity;
use crate::local::LocalSite;
use crate::records::Records;
use crate::site::Site;
use crate::{AgentError, PstEngine};

/// The PSTs of one site, changed by this process.
pub struct InPlace {
    worker: Worker,
    /// The container worked on last, and what is known of it. One at a time: each sync of a
    /// drive runs alone.
    last: Mutex<Option<(String, Option<Known>)>>,
    client: ClientId,
    name: String,
}

impl InPlace {
    /// Works beneath the directory `root`; `exclusivity` says how other programs are kept away. See
    /// [`InPlace::at`].
    ///
    /// # Errors
    /// [`AgentError`] if the root or the records cannot be opened.
    pub fn open(
        root: &Path,
        records_dir: &Path,
        client: ClientId,
        name: String,
        exclusivity: Exclusivity,
    ) -> Result<Self, AgentError> {
        let site = Box::new(LocalSite::open(root, exclusivity)?);
        Self::at(site, records_dir, client, name)
    }

    /// Works at `site` in the name of `client`, with records in `records_dir`. `name` is the
    /// destination's name in the sync database.
    ///
    /// # Errors
    /// [`AgentError`] if the records cannot be opened.
    pub fn at(
        site: Box<dyn Site>,
        records_dir: &Path,
        client: ClientId,
        name: String,
    ) -> Result<Self, AgentError> {
        let worker = Worker {
            site,
            records: Records::open(records_dir)?,
            engine: Arc::new(PstEngine::with_scratch(records_dir)) as Arc<dyn Engine>,
            steps: None,
            max_package: wire::MAX_UNPACKED,
        };
        Ok(Self {
            worker,
            last: Mutex::default(),
            client,
            name,
        })
    }

    fn with<T>(
        &self,
        container: &str,
        f: impl FnOnce(&Worker, &mut Option<Known>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match last.take() {
            Some((path, known)) if path == container => known,
            _ => None,
        };
        let (path, slot) = last.insert((container.to_owned(), known));
        f(&self.worker, slot).inspect_err(|_| tracing::debug!(container = %path, "not applied"))
    }
}

impl Destination for InPlace {
    fn name(&self) -> &str {
        &self.name
    }

    fn inventory(&self, container: &str) -> sync::Result<RemoteInventory> {
        let answer = self
            .with(container, |w, slot| w.inventory(container, slot))
            .map_err(fault)?;
        let unreadable = |detail: String| SyncError::Destination {
            message: format!("the inventory of {container} is not understood: {detail}"),
            retry: false,
            offline: false,
        };
        let rows = wire::unpack(&answer.rows, wire::MAX_UNPACKED)
            .map_err(|e| unreadable(e.to_string()))?;
        let inventory = decode_inventory(&rows).map_err(|e| unreadable(e.to_string()))?;
        Ok(RemoteInventory {
            inventory,
            generation: answer.generation.into(),
        })
    }

    fn apply(
        &self,
        job: &ApplyJob<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> sync::Result<ApplyAnswer> {
        let request = ApplyRequest {
            client: self.client,
            container: job.container.to_owned(),
            sequence: job.sequence,
            digest: *blake3::hash(job.package).as_bytes(),
            base: Some(job.base.into()),
            expected: job.expected,
            package: wire::frame(job.package).map_err(|e| fault(Fault::io(job.container, &e)))?,
        };
        match self.with(job.container, |w, slot| w.apply(&request, slot)) {
            Ok(answer) => {
                progress(answer.bytes_written, answer.bytes_written);
                Ok(ApplyAnswer::Applied(ApplyOutcome {
                    inventory_digest: answer.inventory_digest,
                    generation: answer.generation.into(),
                    nid_map: answer
                        .nid_map
                        .iter()
                        .map(|(proposed, given)| (pst::Nid(*proposed), pst::Nid(*given)))
                        .collect(),
                    bytes_sent: answer.bytes_written,
                    repeated: answer.repeated,
                }))
            }
            Err(f) => match f.code {
                ErrorCode::WrongBase | ErrorCode::SequenceUsed => Ok(ApplyAnswer::WrongBase),
                ErrorCode::InUse => Ok(ApplyAnswer::Busy(f.body().message)),
                ErrorCode::Internal => Ok(ApplyAnswer::Failed(said(&f))),
                code if code.refuses_package() => Ok(ApplyAnswer::Refused(said(&f))),
                _ => Err(fault(f)),
            },
        }
    }
}

/// What went wrong and what to do, for users.
fn said(fault: &Fault) -> String {
    let body = fault.body();
    if body.next.is_empty() {
        return body.message;
    }
    // There is none here but ours.
    let next = body.next.replace("the agent's log", "the log");
    format!("{}; {next}", body.message)
}

#[allow(clippy::needless_pass_by_value)]
fn fault(fault: Fault) -> SyncError {
    SyncError::Destination {
        message: said(&fault),
        retry: fault.code.retry(),
        offline: fault.offline,
    }
}
