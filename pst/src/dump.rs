//! The canonical dump: one JSON line per object, in an order that depends on content alone.
//!
//! Two files with the same mail dump the same lines, whatever their bytes, NIDs and named-property
//! ids. The order: folders depth first by name (then fingerprint), each folder's own line first,
//! then its messages and associated messages by kind, search key and fingerprint, then its
//! sub-folders; last the raw nodes in NID order. What is left out is listed in [`crate::derived`].

use std::sync::Arc;

use crate::canonical::{CanonKey, CanonProp, CanonValue, Record, RecordAttachment, json};
use crate::derived::{ObjectKind, meaning};
use crate::ltp::PropValue;
use crate::messaging::{Index, MessageEntry, Pst, tags};
use crate::{Nid, PstError, Result};

/// How deep folders may be nested.
pub const MAX_FOLDER_DEPTH: usize = 1000;
/// Bytes of lines that are kept while a folder's messages are put in order; what is beyond is read again.
const KEPT_LINES: usize = 16 << 20;

/// What a dump shows beside the content.
#[derive(Clone, Copy, Debug, Default)]
pub struct DumpOptions {
    /// Also show each object's NID. Off by default: NIDs are per file.
    pub nids: bool,
}

/// Calls `emit` with each line of the dump, without line ends.
///
/// # Errors
/// The first object that cannot be read ends the dump; errors of `emit` are passed on.
pub fn dump(
    pst: &Pst,
    options: DumpOptions,
    emit: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<()> {
    let index = pst.index()?;
    let mut walk = Walk {
        pst,
        index: &index,
        options,
        emit,
        path: Vec::new(),
    };
    walk.folder(Nid::ROOT_FOLDER)?;
    for (nid, entry) in &index.raw {
        let record = Record::raw(pst.ndb(), pst.names(), entry)?;
        let mut line = String::from("{\"kind\":\"raw\"");
        push_str(&mut line, "nid", &nid.to_string());
        push_str(&mut line, "meaning", meaning(*nid));
        if nid.kind() != crate::NidType::INTERNAL && entry.nid_parent.0 != 0 {
            push_str(&mut line, "parent", &entry.nid_parent.to_string());
        }
        if let Some((hash, len)) = record.raw {
            line.push_str(",\"blake3\":");
            json::hex(&mut line, &hash);
            line.push_str(&format!(",\"len\":{len}"));
        }
        line.push('}');
        (walk.emit)(&line)?;
    }
    Ok(())
}

struct Walk<'a> {
    pst: &'a Pst,
    index: &'a Arc<Index>,
    options: DumpOptions,
    emit: &'a mut dyn FnMut(&str) -> Result<()>,
    path: Vec<String>,
}

impl Walk<'_> {
    fn folder(&mut self, nid: Nid) -> Result<()> {
        if self.path.len() > MAX_FOLDER_DEPTH {
            return Err(PstError::Limit {
                what: "folder depth",
                found: self.path.len() as u64,
                limit: MAX_FOLDER_DEPTH as u64,
            });
        }
        let data = self.pst.folder(nid)?;
        let record = Record::folder(&data.props, self.pst.names())?;
        let line = self.line(nid, &record);
        (self.emit)(&line)?;

        let entries = self.index.messages.get(&nid).map_or(&[][..], Vec::as_slice);
        let mut order = Vec::with_capacity(entries.len());
        let mut kept = 0;
        for entry in entries {
            let record = self.record(entry)?;
            // What fits into the bound is kept; a folder may hold more than memory does.
            let line = (kept < KEPT_LINES).then(|| self.line(entry.nid, &record));
            kept += line.as_ref().map_or(0, String::len);
            order.push((
                (
                    record.kind,
                    record.search_key(),
                    record.fingerprint(),
                    entry.nid,
                ),
                line,
                entry,
            ));
        }
        order.sort_by_key(|(key, ..)| *key);
        for (_, line, entry) in order {
            let line = match line {
                Some(line) => line,
                None => self.line(entry.nid, &self.record(entry)?),
            };
            (self.emit)(&line)?;
        }

        let mut children = Vec::new();
        for child in self.index.children.get(&nid).map_or(&[][..], Vec::as_slice) {
            let props = self.pst.folder(*child)?.props;
            let name = props
                .get(tags::DISPLAY_NAME)
                .and_then(PropValue::as_str)
                .unwrap_or_default();
            children.push((
                name,
                Record::folder(&props, self.pst.names())?.fingerprint(),
                *child,
            ));
        }
        children.sort();
        for (name, _, child) in children {
            self.path.push(name);
            self.folder(child)?;
            self.path.pop();
        }
        Ok(())
    }

    fn record(&self, entry: &MessageEntry) -> Result<Record> {
        let kind = if entry.associated {
            ObjectKind::Associated
        } else {
            ObjectKind::Message
        };
        self.pst.record(kind, entry.nid)
    }

    fn line(&self, nid: Nid, record: &Record) -> String {
        let mut line = String::from("{\"path\":[");
        for (i, name) in self.path.iter().enumerate() {
            if i > 0 {
                line.push(',');
            }
            json::string(&mut line, name);
        }
        line.push(']');
        push_str(&mut line, "kind", record.kind.name());
        if self.options.nids {
            push_str(&mut line, "nid", &nid.to_string());
        }
        if record.kind != ObjectKind::Folder {
            if let Some((_, key)) = record.short(tags::SEARCH_KEY) {
                line.push_str(",\"search_key\":");
                json::hex(&mut line, key);
            }
            if let Some((tags::PT_STRING, id)) = record.short(tags::INTERNET_MESSAGE_ID)
                && let Some(id) = utf16(id)
            {
                push_str(&mut line, "message_id", &id);
            }
        }
        line.push(',');
        push_record(&mut line, record);
        if !record.cells.is_empty() {
            line.push_str(",\"cells\":");
            push_props(&mut line, &record.cells);
        }
        line.push('}');
        line
    }
}

fn push_str(line: &mut String, key: &str, value: &str) {
    line.push_str(",\"");
    line.push_str(key);
    line.push_str("\":");
    json::string(line, value);
}

/// The members `props`, `recipients` and `attachments`, without braces around them.
fn push_record(line: &mut String, record: &Record) {
    line.push_str("\"props\":");
    push_props(line, &record.props);
    if record.kind == ObjectKind::Folder {
        return;
    }
    line.push_str(",\"recipients\":[");
    for (i, r) in record.recipients.iter().enumerate() {
        if i > 0 {
            line.push(',');
        }
        push_props(line, r);
    }
    line.push_str("],\"attachments\":[");
    for (i, a) in record.attachments.iter().enumerate() {
        if i > 0 {
            line.push(',');
        }
        push_attachment(line, a);
    }
    line.push(']');
}

fn push_attachment(line: &mut String, a: &RecordAttachment) {
    line.push_str("{\"props\":");
    push_props(line, &a.props);
    if let Some(m) = &a.message {
        line.push_str(",\"message\":{");
        push_record(line, m);
        line.push('}');
    }
    line.push('}');
}

fn push_props(line: &mut String, props: &[CanonProp]) {
    line.push('[');
    for (i, p) in props.iter().enumerate() {
        if i > 0 {
            line.push(',');
        }
        line.push_str("{\"tag\":");
        json::string(line, &key_name(&p.key));
        line.push_str(&format!(",\"type\":\"0x{:04x}\"", p.prop_type));
        push_value(line, p);
        line.push('}');
    }
    line.push(']');
}

/// A property's key as text: `0x0037`, `{GUID}/0x8205`, `{GUID}/name`, `unmapped/0x8123`.
#[must_use]
pub fn key_name(key: &CanonKey) -> String {
    match key {
        CanonKey::Id(id) => format!("0x{id:04x}"),
        CanonKey::Number(guid, n) => format!("{{{}}}/0x{n:04x}", json::guid(guid)),
        CanonKey::Text(guid, s) => {
            format!(
                "{{{}}}/{}",
                json::guid(guid),
                crate::ltp::Text::from_utf16le(s).text
            )
        }
        CanonKey::Unmapped(id) => format!("unmapped/0x{id:04x}"),
    }
}

fn utf16(bytes: &[u8]) -> Option<String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    String::from_utf16(
        &pairs
            .iter()
            .map(|p| u16::from_le_bytes(*p))
            .collect::<Vec<_>>(),
    )
    .ok()
}

/// Typed where the type says how and nothing is lost by it, else hex. Floating-point numbers and
/// multi-valued properties stay hex: exact, and the same everywhere.
fn push_value(line: &mut String, p: &CanonProp) {
    let bytes = match &p.value {
        CanonValue::Long { hash, len } => {
            line.push_str(",\"blake3\":");
            json::hex(line, hash);
            line.push_str(&format!(",\"len\":{len}"));
            return;
        }
        CanonValue::Short(bytes) => bytes.as_slice(),
    };
    let number = match (p.prop_type, bytes) {
        (0x0002, &[a, b]) => Some(i64::from(i16::from_le_bytes([a, b]))),
        (0x0003 | 0x000A, &[a, b, c, d]) => Some(i64::from(i32::from_le_bytes([a, b, c, d]))),
        (0x0006 | 0x0014, &[a, b, c, d, e, f, g, h]) => {
            Some(i64::from_le_bytes([a, b, c, d, e, f, g, h]))
        }
        _ => None,
    };
    line.push_str(",\"value\":");
    match (p.prop_type, bytes) {
        _ if number.is_some() => line.push_str(&number.unwrap_or_default().to_string()),
        (tags::PT_BOOL, &[0]) => line.push_str("false"),
        (tags::PT_BOOL, &[1]) => line.push_str("true"),
        (tags::PT_STRING, _) if utf16(bytes).is_some() => {
            json::string(line, &utf16(bytes).unwrap_or_default());
        }
        // PtypString8 is in a code page that only the message knows; ASCII is the same in all.
        (tags::PT_STRING8, _) if bytes.is_ascii() => {
            json::string(line, &String::from_utf8_lossy(bytes));
        }
        (tags::PT_TIME, &[a, b, c, d, e, f, g, h]) => {
            let ticks = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            match json::filetime(ticks) {
                Some(iso) => json::string(line, &iso),
                None => line.push_str("null"),
            }
            line.push_str(&format!(",\"raw\":{ticks}"));
        }
        (tags::PT_GUID, _) if bytes.len() == 16 => {
            let guid = <[u8; 16]>::try_from(bytes).unwrap_or_default();
            json::string(line, &json::guid(&guid));
        }
        _ => json::hex(line, bytes),
    }
}
