//! Messages and attachments: properties, recipient table, attachment rows against attachments
//! ([MS-PST] 2.4.5, 2.4.6), embedded ones too.

use std::collections::{BTreeMap, BTreeSet};

use super::codes::Code;
use super::content::{Content, Held};
use super::properties::Properties;
use crate::messaging::tags;
use crate::ndb::SubnodeEntry;
use crate::{Nid, NidType};

/// PidTagMessageClass, PidTagMessageFlags, PidTagMessageSize, PidTagCreationTime,
/// PidTagLastModificationTime, PidTagSearchKey (2.4.5.1.1). PidTagMessageStatus is in that list too,
/// but lives in the row (2.5.3.1).
const MESSAGE: [u16; 6] = [0x001A, 0x0E07, 0x0E08, 0x3007, 0x3008, 0x300B];
/// PidTagAttachSize, PidTagAttachMethod, PidTagRenderingPosition (2.4.6.2.1).
const ATTACHMENT: [u16; 3] = [0x0E20, 0x3705, 0x370B];

impl Content<'_> {
    /// Checks a node or subnode whose properties were read, and whose subnodes were looked at.
    pub(super) fn object(
        &mut self,
        nid: Nid,
        props: &Properties,
        subnodes: &BTreeMap<Nid, SubnodeEntry>,
        below: &BTreeMap<Nid, Held>,
        offset: u64,
    ) {
        match nid.kind() {
            NidType::NORMAL_MESSAGE => self.message(props, subnodes, below, offset, true),
            NidType::ASSOC_MESSAGE => self.message(props, subnodes, below, offset, false),
            NidType::ATTACHMENT if self.place.0.len() > 1 => {
                self.lacks(Code::AttachmentProperty, props, &ATTACHMENT, offset);
                let embedded = props.i32(tags::ATTACH_METHOD) == Some(tags::METHOD_EMBEDDED);
                let object = props.object(tags::ATTACH_DATA);
                if embedded && !object.is_some_and(|nid| subnodes.contains_key(&nid)) {
                    let place = &self.place;
                    self.out.add(Code::EmbeddedMissing, offset, || {
                        format!("{place}: the attachment's method is 5, its message is {object:?}")
                    });
                }
            }
            _ => {}
        }
    }

    fn message(
        &mut self,
        props: &Properties,
        subnodes: &BTreeMap<Nid, SubnodeEntry>,
        below: &BTreeMap<Nid, Held>,
        offset: u64,
        normal: bool,
    ) {
        if normal {
            self.lacks(Code::MessageProperty, props, &MESSAGE, offset);
            if !subnodes.contains_key(&Nid::RECIPIENT_TABLE) {
                let place = &self.place;
                self.out.add(Code::MessageRecipients, offset, || {
                    format!("{place}: no subnode {}", Nid::RECIPIENT_TABLE)
                });
            }
        }
        let attachments: BTreeSet<u32> = subnodes
            .keys()
            .filter(|n| n.kind() == NidType::ATTACHMENT)
            .map(|n| n.0)
            .collect();
        let rows = match below.get(&Nid::ATTACHMENT_TABLE) {
            Some(Held::Rows(rows)) => rows.as_slice(),
            // Damaged, or shared with another message: reported, or looked at there.
            _ if subnodes.contains_key(&Nid::ATTACHMENT_TABLE) => return,
            _ => &[],
        };
        let place = &self.place;
        for row in rows.iter().filter(|r| !attachments.contains(&r.id)) {
            self.out.add(Code::AttachmentRowStray, offset, || {
                format!("{place}: row {:#x} stands for no attachment", row.id)
            });
        }
        let listed: BTreeSet<u32> = rows.iter().map(|r| r.id).collect();
        for lost in attachments.difference(&listed) {
            self.out.add(Code::AttachmentRowMissing, offset, || {
                format!("{place}: attachment {lost:#x} has no row")
            });
        }
        let flagged = props
            .i32(tags::MESSAGE_FLAGS)
            .map(|f| f & tags::FLAG_HAS_ATTACH != 0);
        if flagged.is_some_and(|f| f == rows.is_empty()) {
            self.out.add(Code::AttachmentFlag, offset, || {
                format!(
                    "{place}: mfHasAttach disagrees with {} attachments",
                    rows.len()
                )
            });
        }
    }

    fn lacks(&mut self, code: Code, props: &Properties, wanted: &[u16], offset: u64) {
        let lacking: Vec<String> = wanted
            .iter()
            .filter(|id| !props.has(**id))
            .map(|id| format!("{id:#06x}"))
            .collect();
        if !lacking.is_empty() {
            let place = &self.place;
            self.out.add(code, offset, || {
                format!("{place}: without {}", lacking.join(", "))
            });
        }
    }
}
