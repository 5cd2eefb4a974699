//! The ways on which change lists reach the share, as the drive was asked for them.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::{Exclusivity, InPlace, LocalSite};
use sync::client::{AgentClient, Throttle, Timeouts, Way};
use sync::wire::{ClientId, Invitation};
use sync::{AgentDestination, Destination};
use vfs::limit::Limit;
use vfs::{Drive, Share};

use super::SHARE;
use crate::daemon::place::{Known, OwnCopy, Placed, Placement, ShareSite};
use crate::daemon::{AgentOptions, DriveOptions};
use crate::error::UserError;

/// Where the drive's own copy of a container is put while it is synced.
pub(super) type OwnCopyPlace = Arc<Mutex<Option<OwnCopy>>>;

/// The share as a destination, and where the local way takes what it can from the drive's own copy.
pub(super) fn of(
    options: &DriveOptions,
    state: &Path,
    client: ClientId,
    share: &Arc<dyn Share>,
    known: &Arc<Known>,
    drive: &Arc<Drive>,
    limit: Arc<Limit>,
) -> Result<(Placed, OwnCopyPlace), UserError> {
    let own = OwnCopyPlace::default();
    let agent = options
        .agent
        .as_ref()
        .map(|agent| by_agent(agent, client, Arc::clone(&limit)));
    let agent = agent.transpose()?;
    let records = state.join("applied");
    let failed = |e: agent::AgentError| {
        UserError::new(
            "share",
            e.to_string(),
            "check the share and the state directory",
        )
    };
    let guarded = options.smb.is_some();
    let state_of = |is: fn(vfs::State) -> bool| -> Arc<dyn Fn() -> bool + Send + Sync> {
        let drive = Arc::downgrade(drive);
        Arc::new(move || drive.upgrade().is_some_and(|drive| is(drive.state())))
    };
    let online = state_of(|state| state == vfs::State::Online);
    let may = state_of(|state| state != vfs::State::Offline);
    let local: Option<Box<dyn Destination>> = if guarded {
        let site = ShareSite::new(Arc::clone(share), Arc::clone(known), Arc::clone(&own), may);
        let local = InPlace::at(Box::new(site), &records, client, SHARE.to_owned());
        Some(Box::new(local.map_err(failed)?))
    } else if agent.is_none() || options.placement == Placement::Local {
        let exclusivity = if options.exclusive {
            Exclusivity::Promised
        } else {
            Exclusivity::Lease
        };
        let site = LocalSite::open(&options.share, exclusivity).map_err(failed)?;
        let site = site.throttled(Arc::new(Within(limit)));
        let local = InPlace::at(Box::new(site), &records, client, SHARE.to_owned());
        Some(Box::new(local.map_err(failed)?))
    } else {
        None
    };
    let handed = state.join("handed");
    let placed = Placed::new(
        SHARE.to_owned(),
        options.placement,
        local,
        agent,
        guarded,
        online,
        handed.clone(),
    );
    let placed = placed.map_err(|e| UserError::file("make", &handed, &e))?;
    Ok((placed, own))
}

/// The drive's limit, as those ask for it that do not go through the drive's share.
struct Within(Arc<Limit>);

impl Throttle for Within {
    fn take(&self, way: Way, want: u64) -> Result<u64, Duration> {
        let way = match way {
            Way::Up => vfs::limit::Way::Up,
            Way::Down => vfs::limit::Way::Down,
        };
        self.0.try_take(way, want)
    }
}

fn by_agent(
    agent: &AgentOptions,
    client: ClientId,
    limit: Arc<Limit>,
) -> Result<Box<dyn Destination>, UserError> {
    let invitation = Invitation {
        url: agent.url.clone(),
        ca_fingerprint: agent.ca_fingerprint,
        token: agent.token.expose().clone(),
    };
    let http = AgentClient::new(&invitation, Timeouts::default()).map_err(|e| {
        UserError::new(
            "agent",
            e.to_string(),
            "check the agent's address and token",
        )
    })?;
    let http = http.throttled(Arc::new(Within(limit)));
    let destination = AgentDestination::new(http, client, SHARE.to_owned());
    Ok(Box::new(destination))
}
