//! A mail program that does random things, the same for the same seed.

use std::sync::Arc;

use pst::ltp::{Guid, PropBag, PropName, PropTag, PropValue};
use pst::messaging::{AttachmentData, MessageData, Transaction, tags};
use pst::ndb::{NodeContent, NodeData, Subnodes};
use pst::{Nid, NidType, Pst};
use storage::{MemStorage, ReadAt};

/// Numbers that look random (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len() as u64) as usize])
    }

    pub fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn text(&mut self, longest: u64) -> String {
        let len = self.below(longest + 1);
        (0..len)
            .map(|_| char::from_u32(0x20 + self.below(0x300) as u32).unwrap_or('?'))
            .collect()
    }
}

/// An empty PST of our own.
pub fn empty() -> Vec<u8> {
    pst::create_empty(b"pairs of version").expect("an empty PST")
}

/// The file after one transaction.
pub fn edited(file: &[u8], edit: impl FnOnce(&mut Transaction)) -> Vec<u8> {
    let target = Arc::new(MemStorage::from(file.to_vec()));
    let mut tx = Transaction::begin(Arc::clone(&target) as Arc<dyn ReadAt>).expect("begins");
    edit(&mut tx);
    let set = tx.finish().expect("finishes");
    set.commit(&*target).expect("commits");
    target.to_vec()
}

/// The file after `count` random transactions.
pub fn random_edits(file: &[u8], random: &mut Random, count: u64) -> Vec<u8> {
    let mut now = file.to_vec();
    for _ in 0..count {
        let pst = Pst::open(Arc::new(MemStorage::from(now.clone()))).expect("opens");
        now = edited(&now, |tx| random_edit(&pst, tx, random));
    }
    now
}

fn named(random: &mut Random) -> PropBag {
    [
        PropValue::string(tags::DISPLAY_NAME, &format!("F{}", random.text(12))),
        PropValue::string(0x3613, "IPF.Note"),
    ]
    .into_iter()
    .collect()
}

fn message(tx: &mut Transaction, random: &mut Random, depth: u32) -> MessageData {
    let mut props: PropBag = [
        PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
        PropValue::string(tags::SUBJECT, &random.text(40)),
        PropValue::i32(tags::MESSAGE_FLAGS, random.below(2) as i32),
        PropValue::time(tags::MESSAGE_DELIVERY_TIME, random.below(1 << 60)),
    ]
    .into_iter()
    .collect();
    let longest = random.pick(&[10, 300, 9_000]).unwrap_or(10);
    props.insert(PropValue::string(tags::BODY, &random.text(longest)));
    if random.below(6) > 0 {
        props.insert(PropValue::binary(tags::SEARCH_KEY, random.bytes(16)));
    }
    if random.below(3) == 0 {
        let name = match random.below(2) {
            0 => PropName::number(Guid(*b"a set of our own"), 0x8500 + random.below(5) as u32),
            _ => PropName::string(Guid::PS_PUBLIC_STRINGS, &format!("N{}", random.below(5))),
        };
        let id = tx.named_id(&name).expect("an id");
        let tag = PropTag((u32::from(id) << 16) | u32::from(tags::PT_BINARY));
        let data = random.bytes(20);
        props.insert(PropValue {
            tag,
            data: pst::ltp::ValueData::Bytes(data),
        });
    }
    let mut recipients = Vec::new();
    for i in 0..random.below(3) {
        recipients.push(
            [
                PropValue::i32(tags::RECIPIENT_TYPE, 1 + i as i32),
                PropValue::string(tags::DISPLAY_NAME, &random.text(20)),
                PropValue::string(tags::EMAIL_ADDRESS, "ada@example.org"),
                PropValue::string(tags::ADDRESS_TYPE, "SMTP"),
            ]
            .into_iter()
            .collect(),
        );
    }
    let mut attachments = Vec::new();
    for _ in 0..random.below(3) {
        let embeds = depth < 2 && random.below(4) == 0;
        let longest = random.pick(&[100, 20_000]).unwrap_or(100);
        let mut props: PropBag = [
            PropValue::i32(tags::ATTACH_METHOD, if embeds { 5 } else { 1 }),
            PropValue::string(tags::ATTACH_LONG_FILENAME, &random.text(12)),
        ]
        .into_iter()
        .collect();
        if !embeds {
            let len = random.below(longest);
            props.insert(PropValue::binary(tags::ATTACH_DATA, random.bytes(len)));
        }
        attachments.push(AttachmentData {
            props,
            embedded: embeds.then(|| Box::new(message(tx, random, depth + 1))),
        });
    }
    MessageData {
        props,
        recipients,
        attachments,
    }
}

fn random_edit(pst: &Pst, tx: &mut Transaction, random: &mut Random) {
    let index = pst.index().expect("an index");
    let top = tx.ipm_subtree().expect("a top folder");
    // Those that a user made; the ones of the store stay.
    let folders: Vec<Nid> = index
        .folders
        .keys()
        .copied()
        .filter(|f| f.index() >= 0x404)
        .collect();
    let mail: Vec<Nid> = index.messages.values().flatten().map(|m| m.nid).collect();
    let place = random.pick(&folders).unwrap_or(top);
    let associated = |nid: Nid| nid.kind() == NidType::ASSOC_MESSAGE;
    match (random.below(14), random.pick(&mail)) {
        (0, _) => {
            tx.create_folder(place, None, &named(random))
                .expect("creates");
        }
        (1, Some(nid)) => {
            let mut m = pst.message(nid).expect("reads");
            m.props
                .insert(PropValue::string(tags::SUBJECT, &random.text(60)));
            tx.update_message(nid, &m).expect("updates");
        }
        (2, Some(nid)) => {
            // Everything but the identity.
            let mut m = message(tx, random, 0);
            m.props.remove(tags::SEARCH_KEY);
            let old = pst.message(nid).expect("reads");
            m.props.extend(old.props.get(tags::SEARCH_KEY).cloned());
            tx.update_message(nid, &m).expect("updates");
        }
        (3, Some(nid)) => tx.move_message(nid, place).expect("moves"),
        (4, Some(nid)) => tx.delete_message(nid).expect("deletes"),
        (5, Some(nid)) => {
            // Its NID for another message.
            tx.delete_message(nid).expect("deletes");
            let m = message(tx, random, 0);
            tx.add_message(place, Some(nid), &m, associated(nid))
                .expect("adds");
        }
        (6, _) if !folders.is_empty() => {
            let mut props = named(random);
            props.insert(PropValue::string(tags::COMMENT, &random.text(30)));
            tx.update_folder(place, &props).expect("updates");
        }
        // Into itself is refused, and changes nothing.
        (7, _) if !folders.is_empty() => {
            let to = random.pick(&folders).unwrap_or(top);
            let _ = tx.move_folder(place, to);
        }
        (8, _) if folders.len() > 2 => tx.delete_folder(place).expect("deletes"),
        (9, _) => {
            let nid = Nid::new(NidType::INTERNAL, 0x500 + random.below(4) as u32);
            let content = NodeContent {
                data: NodeData::Bytes(random.bytes(90)),
                subnodes: Subnodes::None,
            };
            tx.put_raw_node(nid, Nid(0), &content).expect("writes");
        }
        _ => {
            let fai = random.below(7) == 0;
            let m = message(tx, random, 0);
            tx.add_message(place, None, &m, fai).expect("adds");
        }
    }
}
