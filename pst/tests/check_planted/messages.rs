//! Defects of the mail store.

use pst::check::Code;
use pst::ltp::{PropBag, PropValue};
use pst::messaging::tags;
use pst::{Bid, Nid, NidType};

use super::support::surgery::Patient;
use super::{Planted, base, edited, patient, with_data, with_props, with_rows};

const ROOT_FAI: Nid = Nid::ROOT_FOLDER.with_kind(NidType::ASSOC_CONTENTS_TABLE);
const SEARCH_TEMPLATE: Nid = Nid(0x610);
const CONTENTS_TEMPLATE: Nid = Nid(0x60E);
const SPAM_CRITERIA: Nid = Nid(0x2227);

fn without(nid: Nid) -> Patient {
    edited(|tx| tx.delete_node(nid).unwrap())
}

fn moved(nid: Nid, parent: Nid) -> Patient {
    edited(|tx| {
        tx.set_parent(nid, parent).unwrap();
    })
}

fn contents(folder: Nid) -> Nid {
    folder.with_kind(NidType::CONTENTS_TABLE)
}

fn hierarchy(folder: Nid) -> Nid {
    folder.with_kind(NidType::HIERARCHY_TABLE)
}

/// A property of a message that becomes another one.
fn with_record(nid: Nid, id: u16, kind: u16, edit: impl FnOnce(&mut [u8])) -> Patient {
    let mut p = patient();
    let bid = p.first_block(nid);
    p.record(bid, id, kind, edit);
    p
}

/// A property of the first attachment of the full message.
fn with_attachment(id: u16, kind: u16, edit: impl FnOnce(&mut [u8])) -> Patient {
    let mut p = patient();
    let ndb = p.ndb();
    let message = ndb.node(base().full).unwrap().unwrap();
    let subs = ndb.subnodes(message.bid_sub).unwrap();
    let attachment = subs.values().find(|s| s.nid.kind() == NidType::ATTACHMENT);
    p.record(attachment.unwrap().bid_data, id, kind, edit);
    p
}

/// The entry of a subnode of the full message.
fn with_subnode(nid: impl Fn(Nid) -> bool, edit: impl FnOnce(&mut [u8])) -> Patient {
    let mut p = patient();
    let tree: Bid = p.ndb().node(base().full).unwrap().unwrap().bid_sub;
    p.block(tree, |b| {
        let count = usize::from(u16::from_le_bytes([b[2], b[3]]));
        let at = (0..count)
            .map(|i| 8 + 24 * i)
            .find(|at| nid(Nid(u32::from_le_bytes(b[*at..at + 4].try_into().unwrap()))));
        let at = at.unwrap();
        edit(&mut b[at..at + 24]);
    });
    p
}

fn plus_one(bag: &mut PropBag, id: u16) {
    let n = bag.i32(id).unwrap();
    bag.insert(PropValue::i32(id, n + 1));
}

#[allow(clippy::too_many_lines)] // One arm a code.
pub fn plant(code: Code) -> Planted {
    let b = base();
    match code {
        Code::RequiredNode => Planted::alone(without(ROOT_FAI)),
        Code::ExpectedNode => Planted::alone(without(SEARCH_TEMPLATE)),
        Code::TemplateRows => Planted::alone(with_rows(CONTENTS_TEMPLATE, |t| {
            t.put_row(0x20_0024, &PropBag::new()).unwrap();
        })),
        Code::StoreProperty => Planted::alone(with_props(Nid::MESSAGE_STORE, |bag| {
            bag.remove(0x35E7);
        })),
        Code::StoreEntry => Planted::alone(with_props(Nid::MESSAGE_STORE, |bag| {
            let mut id = bag
                .get(tags::IPM_SUBTREE)
                .unwrap()
                .as_bytes()
                .unwrap()
                .to_vec();
            id[21] ^= 0x40;
            bag.insert(PropValue::binary(tags::IPM_SUBTREE, id));
        })),
        Code::FolderProperty => Planted::alone(with_props(b.sub, |bag| {
            bag.remove(tags::CONTENT_UNREAD);
        })),
        Code::FolderTable => {
            Planted::alone(without(b.sub.with_kind(NidType::ASSOC_CONTENTS_TABLE)))
        }
        Code::FolderUnreachable => Planted::with(
            moved(b.sub, Nid::new(NidType::NORMAL_FOLDER, 0x7777)),
            &[Code::HierarchyRowStray, Code::MessageUnreachable],
        ),
        Code::MessageUnreachable => {
            Planted::with(moved(b.plain, Nid(0x21)), &[Code::ContentsRowStray])
        }
        Code::HierarchyRowMissing => {
            let file = with_rows(hierarchy(b.inbox), |t| {
                assert!(t.delete_row(b.sub.0));
            });
            Planted::with(file, &[Code::FolderSubfolders])
        }
        Code::HierarchyRowStray => Planted::alone(with_rows(hierarchy(b.inbox), |t| {
            let row = PropBag::from_iter([PropValue::string(tags::DISPLAY_NAME, "ghost")]);
            t.put_row(0xF_0022, &row).unwrap();
        })),
        Code::HierarchyCopy => Planted::alone(with_rows(hierarchy(b.inbox), |t| {
            let mut row = t.row(b.sub.0).unwrap().props.clone();
            plus_one(&mut row, tags::CONTENT_COUNT);
            t.put_row(b.sub.0, &row).unwrap();
        })),
        Code::ContentsRowMissing => {
            let file = with_rows(contents(b.inbox), |t| {
                assert!(t.delete_row(b.plain.0));
            });
            Planted::with(file, &[Code::FolderCount])
        }
        Code::ContentsRowStray => {
            let file = with_rows(contents(b.inbox), |t| {
                let row = PropBag::from_iter([PropValue::i32(tags::MESSAGE_FLAGS, 1)]);
                t.put_row(0x70_0024, &row).unwrap();
            });
            Planted::with(file, &[Code::FolderCount])
        }
        Code::ContentsCopy => Planted::alone(with_rows(contents(b.inbox), |t| {
            let mut row = t.row(b.plain.0).unwrap().props.clone();
            row.insert(PropValue::string(tags::SUBJECT, "another"));
            t.put_row(b.plain.0, &row).unwrap();
        })),
        Code::FolderCount => {
            let file = with_props(b.sub, |bag| plus_one(bag, tags::CONTENT_COUNT));
            Planted::with(file, &[Code::HierarchyCopy])
        }
        Code::FolderUnread => {
            let file = with_props(b.sub, |bag| plus_one(bag, tags::CONTENT_UNREAD));
            Planted::with(file, &[Code::HierarchyCopy])
        }
        Code::FolderSubfolders => {
            let file = with_props(b.sub, |bag| {
                bag.insert(PropValue::bool(tags::SUBFOLDERS, true));
            });
            Planted::with(file, &[Code::HierarchyCopy])
        }
        Code::MessageProperty => {
            // PidTagSearchKey becomes the next id.
            Planted::alone(with_record(
                b.plain,
                tags::SEARCH_KEY,
                tags::PT_BINARY,
                |r| r[0] += 1,
            ))
        }
        Code::MessageRecipients => Planted::alone(with_subnode(
            |n| n == Nid::RECIPIENT_TABLE,
            |e| e[0] += 0x20,
        )),
        Code::AttachmentRowMissing | Code::AttachmentRowStray => {
            let first = |n: Nid| n.kind() == NidType::ATTACHMENT;
            Planted::with(
                with_subnode(first, |e| e[2] = 1),
                &[
                    Code::AttachmentRowMissing,
                    Code::AttachmentRowStray,
                    Code::SubnodeOrder,
                ],
            )
        }
        Code::AttachmentFlag => Planted::with(
            with_record(b.plain, tags::MESSAGE_FLAGS, tags::PT_I32, |r| r[4] ^= 0x10),
            &[Code::ContentsCopy],
        ),
        Code::AttachmentProperty => {
            Planted::alone(with_attachment(0x370B, tags::PT_I32, |r| r[0] += 1))
        }
        Code::EmbeddedMissing => {
            Planted::alone(with_attachment(tags::ATTACH_METHOD, tags::PT_I32, |r| {
                r[4] = 5;
            }))
        }
        Code::SearchFolderParts => Planted::alone(without(SPAM_CRITERIA)),
        Code::QueueLength => {
            Planted::alone(with_data(Nid::SEARCH_MANAGEMENT_QUEUE, Nid(0), vec![0; 21]))
        }
        Code::QueueHead => {
            let mut sud = vec![0; 20];
            sud[2] = 1;
            Planted::alone(with_data(Nid::SEARCH_MANAGEMENT_QUEUE, Nid(7), sud))
        }
        Code::QueueItem => {
            Planted::alone(with_data(Nid::SEARCH_MANAGEMENT_QUEUE, Nid(0), vec![0; 20]))
        }
        Code::SearchList => {
            Planted::alone(with_data(Nid::SEARCH_ACTIVITY_LIST, Nid(0), vec![9; 4]))
        }
        _ => unreachable!("{code} is of another level"),
    }
}
