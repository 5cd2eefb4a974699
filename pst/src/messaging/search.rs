//! The search management queue: what writers owe the search engine ([MS-PST] 2.4.8).
//!
//! Every change in a folder of the search domain is described by a SUD and appended to the queue
//! (node 0x1E1); the search engine of the next Outlook that opens the file brings its search folders
//! up to date from it. Whether the *content indexer* is on is unknown to a file, so the rule for it
//! (2.4.8.1, first item) is not applied: its queue is filled from folders of the domain only.

use std::collections::BTreeSet;

use crate::Nid;

/// Length of a SUD in bytes ([MS-PST] 2.4.8.1.1).
pub const SUD_LEN: usize = 20;

/// SUDF_DOMAIN_CHECKED: the object was looked up in the search domain.
const DOMAIN_CHECKED: u16 = 0x8000;

/// A change that the search engine must learn of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// SUDT_MSG_ADD: a message was added to a folder.
    MessageAdded { folder: Nid, message: Nid },
    /// SUDT_MSG_MOD and SUDT_MSG_ROW_MOD: a message and its row changed.
    MessageChanged { folder: Nid, message: Nid },
    /// SUDT_MSG_DEL: a message was deleted.
    MessageDeleted { folder: Nid, message: Nid },
    /// SUDT_MSG_MOV: a message was moved.
    MessageMoved { from: Nid, to: Nid, message: Nid },
    /// SUDT_FLD_ADD: a folder was added.
    FolderAdded { parent: Nid, folder: Nid },
    /// SUDT_FLD_MOD: a folder's properties changed.
    FolderChanged { folder: Nid },
    /// SUDT_FLD_DEL: a folder was deleted.
    FolderDeleted { parent: Nid, folder: Nid },
    /// SUDT_FLD_MOV: a folder was moved.
    FolderMoved { from: Nid, to: Nid, folder: Nid },
    /// SUDT_SRCH_ADD: a search folder was added.
    SearchAdded { folder: Nid },
    /// SUDT_SRCH_DEL: a search folder was deleted.
    SearchDeleted { folder: Nid },
}

/// The NIDs in a search domain object: an array of NIDs ([MS-PST] 2.4.8.4.3).
pub fn parse_domain(data: &[u8]) -> BTreeSet<Nid> {
    data.as_chunks::<4>()
        .0
        .iter()
        .map(|b| Nid(u32::from_le_bytes(*b)))
        .collect()
}

/// Appends the SUDs of a change, where the rules of [MS-PST] 2.4.8.1 ask for them.
pub fn queue(out: &mut Vec<u8>, domain: &BTreeSet<Nid>, change: Change) {
    let inside = |nid: Nid| domain.contains(&nid);
    match change {
        Change::MessageAdded { folder, message } if inside(folder) => {
            sud(out, DOMAIN_CHECKED, 0x01, [folder.0, message.0, 0]);
        }
        Change::MessageChanged { folder, message } if inside(folder) => {
            sud(out, DOMAIN_CHECKED, 0x02, [folder.0, message.0, 0]);
            sud(out, DOMAIN_CHECKED, 0x0C, [folder.0, message.0, 0]);
        }
        Change::MessageDeleted { folder, message } if inside(folder) => {
            sud(out, DOMAIN_CHECKED, 0x03, [folder.0, message.0, 0]);
        }
        Change::MessageMoved { from, to, message } => {
            if let Some(flag) = movement(inside(from), inside(to)) {
                sud(out, DOMAIN_CHECKED | flag, 0x04, [to.0, message.0, from.0]);
            }
        }
        Change::FolderAdded { parent, folder } if inside(parent) => {
            sud(out, DOMAIN_CHECKED, 0x05, [parent.0, folder.0, 0]);
        }
        Change::FolderChanged { folder } if inside(folder) => {
            sud(out, DOMAIN_CHECKED, 0x06, [folder.0, 0, 0]);
        }
        Change::FolderDeleted { parent, folder } if inside(parent) || inside(folder) => {
            sud(out, DOMAIN_CHECKED, 0x07, [folder.0, 0, 0]);
        }
        Change::FolderMoved { from, to, folder } => {
            if let Some(flag) = movement(inside(from), inside(to)) {
                sud(out, DOMAIN_CHECKED | flag, 0x08, [to.0, folder.0, 0]);
            }
        }
        Change::SearchAdded { folder } => sud(out, 0, 0x09, [folder.0, 0, 0]),
        Change::SearchDeleted { folder } => sud(out, 0, 0x0B, [folder.0, 0, 0]),
        Change::MessageAdded { .. }
        | Change::MessageChanged { .. }
        | Change::MessageDeleted { .. }
        | Change::FolderAdded { .. }
        | Change::FolderChanged { .. }
        | Change::FolderDeleted { .. } => {}
    }
}

/// SUDF_MOVE_*; `None` where both ends are outside the domain: nothing is queued then.
const fn movement(from: bool, to: bool) -> Option<u16> {
    match (from, to) {
        (false, true) => Some(0x10),
        (true, true) => Some(0x20),
        (true, false) => Some(0x40),
        (false, false) => None,
    }
}

fn sud(out: &mut Vec<u8>, flags: u16, kind: u16, data: [u32; 3]) {
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    for word in data {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&[0; 4]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_in_the_domain_are_queued() {
        let domain = parse_domain(&[0x22, 0x80, 0, 0, 0x62, 0x80, 0, 0]);
        let (inside, outside) = (Nid(0x8022), Nid(0x9022));
        let message = Nid(0x20_0024);
        let mut out = Vec::new();
        queue(
            &mut out,
            &domain,
            Change::MessageAdded {
                folder: outside,
                message,
            },
        );
        queue(
            &mut out,
            &domain,
            Change::MessageMoved {
                from: outside,
                to: outside,
                message,
            },
        );
        queue(
            &mut out,
            &domain,
            Change::FolderAdded {
                parent: outside,
                folder: Nid(0xA022),
            },
        );
        assert!(out.is_empty());
        queue(
            &mut out,
            &domain,
            Change::MessageAdded {
                folder: inside,
                message,
            },
        );
        assert_eq!(out.len(), SUD_LEN);
        assert_eq!(
            out[..12],
            [0x00, 0x80, 1, 0, 0x22, 0x80, 0, 0, 0x24, 0, 0x20, 0]
        );
        out.clear();
        queue(
            &mut out,
            &domain,
            Change::MessageMoved {
                from: inside,
                to: outside,
                message,
            },
        );
        assert_eq!(out[..4], [0x40, 0x80, 4, 0]);
        assert_eq!(
            out[4..16],
            [0x22, 0x90, 0, 0, 0x24, 0, 0x20, 0, 0x22, 0x80, 0, 0]
        );
    }
}
