//! What every mail store must have ([MS-PST] 2.7): nodes, templates, the store's own properties.

use std::sync::Arc;

use super::codes::Code;
use super::collect::Findings;
use super::content::Facts;
use crate::derived::meaning;
use crate::ltp::PropertyContext;
use crate::messaging::schema::{
    ASSOC_CONTENTS_TEMPLATE, CONTENTS_TEMPLATE, HIERARCHY_TEMPLATE, SEARCH_CONTENTS_TEMPLATE,
};
use crate::messaging::tags;
use crate::ndb::{NbtEntry, Ndb};
use crate::{Nid, NidType};

/// Without these nothing can be shown.
const REQUIRED: [Nid; 6] = [
    Nid::MESSAGE_STORE,
    Nid::NAME_TO_ID_MAP,
    Nid::ROOT_FOLDER,
    Nid::ROOT_FOLDER.with_kind(NidType::HIERARCHY_TABLE),
    Nid::ROOT_FOLDER.with_kind(NidType::CONTENTS_TABLE),
    Nid::ROOT_FOLDER.with_kind(NidType::ASSOC_CONTENTS_TABLE),
];
const TEMPLATES: [Nid; 6] = [
    HIERARCHY_TEMPLATE,
    CONTENTS_TEMPLATE,
    ASSOC_CONTENTS_TEMPLATE,
    SEARCH_CONTENTS_TEMPLATE,
    Nid::ATTACHMENT_TABLE,
    Nid::RECIPIENT_TABLE,
];
const EXPECTED: [Nid; 2] = [Nid::SEARCH_MANAGEMENT_QUEUE, Nid::SEARCH_ACTIVITY_LIST];
/// EntryIDs of folders: PidTagIpmSubTreeEntryId, PidTagIpmWastebasketEntryId,
/// PidTagFinderEntryId.
const ENTRY_IDS: [u16; 3] = [tags::IPM_SUBTREE, 0x35E3, 0x35E7];

pub(super) fn check(ndb: &Arc<Ndb>, out: &mut Findings, nodes: &[NbtEntry], facts: &Facts) {
    let find = |nid: Nid| nodes.binary_search_by_key(&nid, |n| n.nid).ok();
    for nid in REQUIRED.into_iter().filter(|n| find(*n).is_none()) {
        out.add(Code::RequiredNode, 0, || {
            format!("there is no node {nid} ({})", meaning(nid))
        });
    }
    let expected = TEMPLATES.into_iter().chain(EXPECTED);
    for nid in expected.filter(|n| find(*n).is_none()) {
        out.add(Code::ExpectedNode, 0, || {
            format!("there is no node {nid} ({})", meaning(nid))
        });
    }
    for nid in TEMPLATES {
        let rows = facts.tables.get(&nid).map_or(0, Vec::len);
        if rows > 0 {
            let at = facts.offsets.get(&nid).copied().unwrap_or_default();
            out.add(Code::TemplateRows, at, || {
                format!("template {nid} has {rows} rows")
            });
        }
    }
    if let Some(store) = find(Nid::MESSAGE_STORE).and_then(|i| nodes.get(i)) {
        properties(ndb, out, store, facts, &|nid| find(nid).is_some());
    }
}

fn properties(
    ndb: &Arc<Ndb>,
    out: &mut Findings,
    store: &NbtEntry,
    facts: &Facts,
    exists: &dyn Fn(Nid) -> bool,
) {
    let at = facts.offsets.get(&store.nid).copied().unwrap_or_default();
    // One that cannot be read has been reported.
    let Ok(pc) = PropertyContext::open(ndb, store.bid_data, store.bid_sub) else {
        return;
    };
    let bytes = |id: u16| -> Option<Vec<u8>> {
        let value = pc.get(id).ok()??;
        value.data.bytes().map(<[u8]>::to_vec)
    };
    let key = bytes(tags::RECORD_KEY);
    let wanted = [tags::RECORD_KEY, tags::DISPLAY_NAME].into_iter();
    for id in wanted.chain(ENTRY_IDS) {
        if !pc.tags().any(|t| t.id() == id) {
            out.add(Code::StoreProperty, at, || {
                format!("the store has no property {id:#06x}")
            });
        }
    }
    for id in ENTRY_IDS {
        let Some(entry) = bytes(id) else { continue };
        // 4 bytes of flags, the store's 16-byte key, the NID (2.4.3.2).
        let uid = entry.get(4..20);
        let nid = entry
            .get(20..24)
            .and_then(|b| b.try_into().ok())
            .map(|b| Nid(u32::from_le_bytes(b)));
        let folder = nid.is_some_and(|n| n.kind() == NidType::NORMAL_FOLDER && exists(n));
        let ours = key.is_none() || uid == key.as_deref();
        if !(folder && ours && entry.len() == 24) {
            out.add(Code::StoreEntry, at, || {
                let whose = if ours {
                    "this file's"
                } else {
                    "another file's"
                };
                format!("property {id:#06x} names {nid:?} with {whose} record key")
            });
        }
    }
}
