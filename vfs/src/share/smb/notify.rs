//! What the server tells of changes (CHANGE_NOTIFY, MS-SMB2 3.3.5.19).
//!
//! One watch on the drive's root for everything beneath it. A task of its own reads it, so that there is
//! always a request on the server for changes to go into; it ends with the session, or when nobody
//! wants to hear of them any more. What it has told and nobody asked for yet is bounded: beyond that it
//! is "anything may have changed", as it is when the server lost count itself.
//!
//! It is a help, not a promise: servers tell of what went through them. (Samba hears of changes made on
//! its disk only in the watched directory itself.) So whoever listens asks now and then all the same.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use smb2::client::Watcher;
use smb2::types::status::NtStatus;
use smb2::{Error, WatchOptions};

use super::Inner;
use super::error::{Result, SmbError};
use crate::path::normalise;
use crate::share::{Changed, Changes};

/// Most paths that wait to be asked for.
const MOST: usize = 4096;

#[derive(Default)]
struct Heard {
    paths: BTreeSet<String>,
    /// More than can be said.
    anything: bool,
    /// The watch is over.
    ended: Option<SmbError>,
}

/// A watch on the root.
pub(super) struct SmbChanges {
    heard: Arc<Mutex<Heard>>,
    task: tokio::task::JoinHandle<()>,
}

impl Inner {
    pub(super) async fn changes(&self) -> Result<SmbChanges> {
        let live = self.sessions.live().await?;
        let mut conn = live.conn.clone();
        let options = WatchOptions::new().recursive(true);
        let watch = live.tree.watch_with(&mut conn, &self.prefix, options);
        let watcher = live.answer(watch).await?;
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let task = tokio::spawn(listen(watcher, heard.clone()));
        Ok(SmbChanges { heard, task })
    }
}

async fn listen(mut watcher: Watcher, heard: Arc<Mutex<Heard>>) {
    loop {
        let events = watcher.next_events().await;
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        match events {
            Ok(events) => {
                for event in events {
                    // A name that cannot be one of ours may be anything.
                    match normalise(&event.filename) {
                        Ok(path) => {
                            heard.paths.insert(path);
                        }
                        Err(_) => heard.anything = true,
                    }
                }
            }
            Err(Error::Protocol { status, .. }) if status == NtStatus::NOTIFY_ENUM_DIR => {
                heard.anything = true;
            }
            Err(e) => {
                heard.ended = Some(SmbError::from_client(&e));
                return;
            }
        }
        if heard.paths.len() > MOST {
            heard.paths.clear();
            heard.anything = true;
        }
    }
}

impl Drop for SmbChanges {
    fn drop(&mut self) {
        // The watch's handle is closed with it.
        self.task.abort();
    }
}

impl Changes for SmbChanges {
    fn heard(&mut self) -> io::Result<Changed> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let paths = std::mem::take(&mut heard.paths);
        if std::mem::take(&mut heard.anything) {
            return Ok(Changed::Anything);
        }
        match &heard.ended {
            Some(e) if paths.is_empty() => Err(e.clone().into()),
            _ => Ok(Changed::These(paths.into_iter().collect())),
        }
    }
}
