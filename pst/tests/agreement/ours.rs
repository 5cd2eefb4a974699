//! What the engine says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pst::ltp::{CodePage, NodeSource, PropBag, PropType, PropertyContext, ValueData};
use pst::messaging::{MessageData, Pst, code_page, tags};
use pst::{Nid, NidType};
use storage::ReadAt;

use super::facts::*;
use super::lzfu;

/// What we know of our own statements beside what they say.
#[derive(Default)]
pub struct Known {
    /// The path of the top of the user's folders.
    pub top: Vec<String>,
    /// Upper-case message classes of the items that make a statement.
    classes: BTreeMap<String, BTreeSet<String>>,
    /// Statements of items whose RTF body is stored uncompressed.
    rtf: BTreeSet<String>,
}

impl Known {
    /// Whether an item whose class begins so makes this statement.
    pub fn is(&self, statement: &str, class: &str) -> bool {
        let classes = self.classes.get(statement);
        classes.is_some_and(|c| c.iter().any(|c| c.starts_with(class)))
    }

    pub fn has_stored_rtf(&self, statement: &str) -> bool {
        self.rtf.contains(statement)
    }

    fn note(&mut self, statement: &str, class: &str, rtf: bool) {
        let classes = self.classes.entry(statement.to_owned()).or_default();
        classes.insert(class.to_ascii_uppercase());
        if rtf {
            self.rtf.insert(statement.to_owned());
        }
    }
}

/// What the engine says. With `western`, 8-bit text is read as Windows-1252 whatever the file says
/// of it, as the other readers do.
pub fn facts(storage: Arc<dyn ReadAt>, western: bool) -> (Facts, Known) {
    let pst = Pst::open(storage).unwrap();
    let index = pst.index().unwrap();
    let western = western.then_some(CodePage::WESTERN);
    let store_page = western.or(pst.code_page().unwrap());
    let mut names: BTreeMap<Nid, (Nid, String)> = BTreeMap::new();
    for folder in index.folders.values() {
        let props = pst.folder(folder.nid).unwrap().props;
        names.insert(
            folder.nid,
            (
                folder.parent,
                name(&text(&props, tags::DISPLAY_NAME, store_page)),
            ),
        );
    }
    for entry in index.raw.values() {
        if entry.nid.kind() == NidType::SEARCH_FOLDER {
            let pc = PropertyContext::open(pst.ndb(), entry.bid_data, entry.bid_sub).unwrap();
            let shown = text(&pc.bag().unwrap(), tags::DISPLAY_NAME, store_page);
            names.insert(entry.nid, (entry.nid_parent, name(&shown)));
        }
    }
    let path = |nid: Nid| {
        let mut out = Vec::new();
        let mut at = nid;
        while at != Nid::ROOT_FOLDER {
            let (parent, shown) = &names[&at];
            out.insert(0, shown.clone());
            at = *parent;
        }
        out
    };
    // The store of an OST names no top folder; it is known by its name.
    let named = names
        .iter()
        .find(|(nid, (_, shown))| shown == "IPM_SUBTREE" && path(**nid)[0] == "Root_Mailbox");
    let top = match (pst.ipm_subtree(), named) {
        (Ok(nid), None) => path(nid),
        (_, Some((nid, _))) => path(*nid),
        (Err(e), None) => panic!("no top folder: {e}"),
    };
    let mut known = Known {
        top,
        ..Known::default()
    };
    let top = known.top.clone();
    let mut facts = Facts::default();
    for nid in names.keys().filter(|n| **n != Nid::ROOT_FOLDER) {
        facts.say(FOLDER, place(&path(*nid), &top));
    }
    for (folder, messages) in &index.messages {
        let at = place(&path(*folder), &top);
        for entry in messages.iter().filter(|m| !m.associated) {
            let message = pst.message(entry.nid).unwrap();
            say(&mut facts, &mut known, &at, &message, western);
        }
    }
    (facts, known)
}

fn text(props: &PropBag, id: u16, page: Option<CodePage>) -> String {
    let value = props.get(id);
    let shown = value.and_then(|v| match page {
        Some(page) => v.as_text_in(page),
        None => v.as_text(),
    });
    shown.map(|t| t.text).unwrap_or_default()
}

fn bytes(props: &PropBag, id: u16, page: Option<CodePage>) -> Option<Vec<u8>> {
    let value = props.get(id)?;
    let raw = value.data.read(1 << 30).ok()?;
    let kind = value.tag.prop_type();
    let value = pst::ltp::PropValue::new(value.tag, raw);
    Some(match kind {
        PropType::UNICODE => value.as_str()?.into_bytes(),
        PropType::STRING8 => value
            .as_text_in(page.unwrap_or(CodePage::WESTERN))?
            .text
            .into(),
        _ => value.as_bytes()?.to_vec(),
    })
}

fn say(facts: &mut Facts, known: &mut Known, at: &str, m: &MessageData, western: Option<CodePage>) {
    let page = western.or(code_page(&m.props));
    let class = text(&m.props, tags::MESSAGE_CLASS, page);
    let packed = bytes(&m.props, 0x1009, page);
    let rtf = packed.as_deref().is_some_and(lzfu::is_stored);
    let mut say_all = |facet: &'static str, statement: String| {
        known.note(&statement, &class, rtf);
        facts.say(facet, statement);
    };
    let subject = line(&text(&m.props, tags::SUBJECT, page));
    let item = format!("{at}|{subject}");
    say_all(ITEM, item.clone());
    for (facet, id) in [(TEXT, 0x1000), (HTML, 0x1013)] {
        if let Some(b) = bytes(&m.props, id, page).filter(|b| !b.trim_ascii().is_empty()) {
            say_all(facet, format!("{item}|{}", body(&b)));
        }
    }
    if let Some(packed) = packed
        && let Some(rtf) = lzfu::inflate(&packed)
    {
        say_all(RTF, format!("{item}|{}", body(&rtf)));
    }
    for r in &m.recipients {
        let kind = match r.i32(0x0C15).map(|k| k & 0xF) {
            Some(1) => "To",
            Some(2) => "CC",
            Some(3) => "BCC",
            _ => "Originator",
        };
        let (shown, address) = (text(r, tags::DISPLAY_NAME, page), text(r, 0x3003, page));
        say_all(
            RECIPIENT,
            format!("{item}|{}|{}|{kind}", line(&shown), line(&address)),
        );
    }
    let mut embedded = Vec::new();
    for a in &m.attachments {
        if let Some(inner) = &a.embedded {
            let inner_page = western.or(code_page(&inner.props));
            let subject = line(&text(&inner.props, tags::SUBJECT, inner_page));
            say_all(EMBEDDED, format!("{item}|{subject}"));
            embedded.push(inner);
            continue;
        }
        let Some(data) = a.props.get(tags::ATTACH_DATA) else {
            continue;
        };
        let data = match &data.data {
            // An OLE object: the data of its subnode.
            ValueData::Object(object) => match &object.content {
                Some(NodeSource::Stored { ndb, bid_data, .. }) => {
                    ndb.data(*bid_data).unwrap().read_all(ndb, 1 << 30).unwrap()
                }
                _ => continue,
            },
            other => other.read(1 << 30).unwrap(),
        };
        let long = text(&a.props, 0x3707, page);
        let shown = if long.is_empty() {
            text(&a.props, 0x3704, page)
        } else {
            long
        };
        say_all(FILE, format!("{at}|{}|{}", name(&shown), file(&data)));
    }
    for inner in embedded {
        say(facts, known, &format!("{item}>"), inner, western);
    }
}
