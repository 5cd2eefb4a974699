//! Random edits of a file and of a plain in-memory model: equal after every commit, with tables,
//! counts and structure right, and the same bytes from the same calls.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use pst::ltp::{PropBag, PropValue};
use pst::messaging::{IPM_SUBTREE, MessageData, Pst, Transaction, tags};
use pst::ndb::Format;
use pst::{Nid, NidType, PstError};
use support::FORMATS;
use support::mail::*;

/// What the file must hold.
#[derive(Clone, Default)]
struct Model {
    folders: BTreeMap<Nid, (Nid, PropBag)>,
    messages: BTreeMap<Nid, (Nid, bool, MessageData)>,
}

impl Model {
    fn new(pst: &Pst) -> Self {
        let mut model = Self::default();
        for f in pst.folders().unwrap() {
            model
                .folders
                .insert(f.nid, (f.parent, pst.folder(f.nid).unwrap().props));
        }
        model
    }

    fn nth<K: Copy, V>(map: &BTreeMap<K, V>, n: u32) -> Option<K> {
        map.keys().nth(n as usize % map.len().max(1)).copied()
    }

    fn inside(&self, mut at: Nid, ancestor: Nid) -> bool {
        while at != Nid::ROOT_FOLDER {
            if at == ancestor {
                return true;
            }
            at = self.folders[&at].0;
        }
        ancestor == Nid::ROOT_FOLDER
    }

    fn delete(&mut self, folder: Nid) {
        let children: Vec<Nid> = self
            .folders
            .iter()
            .filter(|(n, (p, _))| *p == folder && **n != folder)
            .map(|(n, _)| *n)
            .collect();
        children.into_iter().for_each(|c| self.delete(c));
        self.folders.remove(&folder);
        self.messages.retain(|_, (f, ..)| *f != folder);
    }

    fn equals(&self, pst: &Pst) {
        let folders: BTreeMap<Nid, Nid> = pst
            .folders()
            .unwrap()
            .iter()
            .map(|f| (f.nid, f.parent))
            .collect();
        assert_eq!(
            folders,
            self.folders.iter().map(|(n, (p, _))| (*n, *p)).collect()
        );
        for (nid, (_, props)) in &self.folders {
            let record = |p: &PropBag| {
                pst::canonical::Record::folder(p, pst.names())
                    .unwrap()
                    .fingerprint()
            };
            assert_eq!(
                record(&pst.folder(*nid).unwrap().props),
                record(props),
                "folder {nid}"
            );
        }
        let mut found = BTreeMap::new();
        for m in pst.index().unwrap().messages.values().flatten() {
            found.insert(m.nid, (m.entry.nid_parent, m.associated));
        }
        assert_eq!(
            found,
            self.messages
                .iter()
                .map(|(n, (f, a, _))| (*n, (*f, *a)))
                .collect()
        );
        for (nid, (_, a, data)) in &self.messages {
            let record =
                |m: &MessageData| pst::canonical::Record::message(m, *a, pst.names()).unwrap();
            assert_eq!(
                record(&pst.message(*nid).unwrap()),
                record(data),
                "message {nid}"
            );
        }
    }
}

/// Does one random edit on both; edits that the rules forbid must be refused.
fn edit(tx: &mut Transaction, model: &mut Model, (op, a, b, seed): (u8, u32, u32, u32)) {
    let folder_at = |model: &Model, n| Model::nth(&model.folders, n).unwrap();
    let (fa, fb) = (folder_at(model, a), folder_at(model, b));
    let message_at = Model::nth(&model.messages, a);
    match op % 16 {
        0 | 1 => {
            let props = folder(&format!("Folder {seed}"));
            let nid = tx.create_folder(fa, None, &props).unwrap();
            model.folders.insert(nid, (fa, props));
        }
        2 => {
            let mut props = folder(&format!("Renamed {seed}"));
            props.insert(PropValue::i32(0x3602, 77)); // a count that must be ignored
            tx.update_folder(fa, &props).unwrap();
            model.folders.get_mut(&fa).unwrap().1 = props;
        }
        3 => {
            let done = tx.move_folder(fa, fb);
            if fa == Nid::ROOT_FOLDER || model.inside(fb, fa) {
                if model.folders[&fa].0 != fb {
                    assert!(
                        matches!(done, Err(PstError::Refused(_))),
                        "{fa} into {fb}: {done:?}"
                    );
                }
            } else {
                done.unwrap();
                model.folders.get_mut(&fa).unwrap().0 = fb;
            }
        }
        4 if fa != IPM_SUBTREE && fa != Nid::ROOT_FOLDER => {
            tx.delete_folder(fa).unwrap();
            model.delete(fa);
        }
        5..=9 => {
            let (data, associated) = (varied(seed), seed % 11 == 0);
            let nid = tx.add_message(fa, None, &data, associated).unwrap();
            model.messages.insert(nid, (fa, associated, data));
        }
        10 | 11 => {
            if let Some(nid) = message_at {
                let entry = model.messages.get_mut(&nid).unwrap();
                let mut data = entry.2.clone();
                match seed % 4 {
                    0 => data = varied(seed),
                    1 => {
                        data.props
                            .insert(PropValue::string(tags::SUBJECT, &format!("Changed {seed}")));
                    }
                    2 => data
                        .attachments
                        .push(attachment("more.bin", vec![seed as u8; 9_000])),
                    _ => {
                        data.attachments.truncate(1);
                        data.recipients.clear();
                    }
                }
                tx.update_message(nid, &data).unwrap();
                entry.2 = data;
            }
        }
        12 | 13 => {
            if let Some(nid) = message_at {
                tx.move_message(nid, fb).unwrap();
                model.messages.get_mut(&nid).unwrap().0 = fb;
            }
        }
        14 => {
            if let Some(nid) = message_at {
                tx.delete_message(nid).unwrap();
                model.messages.remove(&nid);
            }
        }
        15 => {
            // The same NID again after a delete.
            if let Some(nid) = message_at {
                tx.delete_message(nid).unwrap();
                let (data, associated) = (varied(seed), nid.kind() == NidType::ASSOC_MESSAGE);
                assert_eq!(
                    tx.add_message(fb, Some(nid), &data, associated).unwrap(),
                    nid
                );
                assert!(tx.add_message(fb, Some(nid), &data, associated).is_err());
                model.messages.insert(nid, (fb, associated, data));
            }
        }
        _ => {}
    }
}

type Edit = (u8, u32, u32, u32);

fn run(batches: &[Vec<Edit>], format: &'static Format) {
    let file = empty_as(format);
    let mut model = Model::new(&open(&file));
    for batch in batches {
        let before = file.clone();
        let mut tx = begin(&file);
        let mut same = begin(&before);
        let mut copy = model.clone();
        for e in batch {
            edit(&mut tx, &mut model, *e);
            edit(&mut same, &mut copy, *e);
        }
        let set = tx.finish().unwrap();
        assert_eq!(
            format!("{set:?}"),
            format!("{:?}", same.finish().unwrap()),
            "not a pure function"
        );
        commit(&set, &file);
        let pst = open(&file);
        clean(&pst);
        consistent(&pst);
        model.equals(&pst);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_edits_leave_what_a_plain_model_leaves(
        batches in prop::collection::vec(prop::collection::vec(any::<Edit>(), 0..12), 1..8),
        format in 0..FORMATS.len(),
    ) {
        run(&batches, FORMATS[format]);
    }
}
