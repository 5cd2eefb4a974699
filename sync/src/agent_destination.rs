//! A destination behind an agent: split placement (DESIGN 6).

use crate::client::{AgentClient, Apply, ClientError};
use crate::destination::{ApplyAnswer, ApplyJob, ApplyOutcome, Destination, RemoteInventory};
use crate::error::{Result, SyncError};
use crate::rows::decode_inventory;
use crate::wire::{ClientId, ErrorCode};

/// The PST on the share, reached through the agent beside it.
#[derive(Debug)]
pub struct AgentDestination {
    client: AgentClient,
    id: ClientId,
    name: String,
}

impl AgentDestination {
    /// Asks `client` in the name of `id`. `name` is the destination's name in the sync database:
    /// the share, not the way to it, so that another address or placement goes on with it.
    #[must_use]
    pub const fn new(client: AgentClient, id: ClientId, name: String) -> Self {
        Self { client, id, name }
    }
}

impl Destination for AgentDestination {
    fn name(&self) -> &str {
        &self.name
    }

    fn inventory(&self, container: &str) -> Result<RemoteInventory> {
        let remote = self.client.inventory(container).map_err(refused)?;
        let inventory = decode_inventory(&remote.rows).map_err(|e| SyncError::Destination {
            message: format!("the agent's inventory is not understood: {e}"),
            retry: false,
            offline: false,
        })?;
        Ok(RemoteInventory {
            inventory,
            generation: remote.generation.into(),
        })
    }

    fn apply(&self, job: &ApplyJob<'_>, progress: &mut dyn FnMut(u64, u64)) -> Result<ApplyAnswer> {
        let apply = Apply {
            client: self.id,
            container: job.container,
            sequence: job.sequence,
            base: Some(job.base.into()),
            expected: job.expected,
            package: job.package,
        };
        match self.client.apply(&apply, progress) {
            Ok(sent) => Ok(ApplyAnswer::Applied(ApplyOutcome {
                inventory_digest: sent.answer.inventory_digest,
                generation: sent.answer.generation.into(),
                nid_map: sent
                    .answer
                    .nid_map
                    .iter()
                    .map(|(proposed, given)| (pst::Nid(*proposed), pst::Nid(*given)))
                    .collect(),
                bytes_sent: sent.bytes_sent,
                repeated: sent.answer.repeated,
            })),
            Err(error) => match error.code() {
                Some(ErrorCode::WrongBase | ErrorCode::SequenceUsed) => Ok(ApplyAnswer::WrongBase),
                Some(ErrorCode::InUse) => Ok(ApplyAnswer::Busy(error.to_string())),
                Some(code) if code.refuses_package() => Ok(ApplyAnswer::Refused(error.to_string())),
                Some(ErrorCode::Internal) => Ok(ApplyAnswer::Failed(error.to_string())),
                None if matches!(error, ClientError::TooLarge { .. }) => {
                    Ok(ApplyAnswer::Refused(error.to_string()))
                }
                _ => Err(refused(error)),
            },
        }
    }
}

fn refused(error: ClientError) -> SyncError {
    SyncError::Destination {
        message: error.to_string(),
        retry: error.retry(),
        offline: error.offline(),
    }
}
