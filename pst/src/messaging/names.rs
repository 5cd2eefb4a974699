//! Named properties between files ([MS-PST] 2.4.7): ids from 0x8000 up are handed out per file, so an
//! object that goes from one file to another is translated by name.
//!
//! Real maps give several ids the same name. A look-up by name finds one of them; where an object
//! has properties under more than one, that one is the property and the others are shadows: they
//! cannot be told apart in another file, and so are neither compared nor carried over.

use std::collections::BTreeMap;

use super::read::{AttachmentData, MessageData};
use super::transaction::Transaction;
use crate::Result;
use crate::canonical::{CanonKey, canon_key};
use crate::ltp::{NameMap, PropBag, PropTag, PropValue};

/// The properties of a bag by what they are, without shadows.
pub(crate) fn by_key<'a>(props: &'a PropBag, names: &NameMap) -> BTreeMap<CanonKey, &'a PropValue> {
    let mut out: BTreeMap<CanonKey, &PropValue> = BTreeMap::new();
    for value in props {
        let id = value.tag.id();
        let found = names.name(id).and_then(|name| names.id(name)) == Some(id);
        let slot = out.entry(canon_key(id, names)).or_insert(value);
        if found {
            *slot = value;
        }
    }
    out
}

impl Transaction {
    /// Properties of another file, whose name map is `from`, under the ids of this file. New names
    /// get new ids.
    ///
    /// An id that its own file does not name keeps its number, unless this file gives that number
    /// a meaning: then it is left out.
    ///
    /// # Errors
    /// As [`Transaction::named_id`].
    pub fn import_props(&mut self, props: &PropBag, from: &NameMap) -> Result<PropBag> {
        let mut out = PropBag::new();
        for value in by_key(props, from).into_values() {
            let id = value.tag.id();
            let id = match from.name(id) {
                Some(name) => self.named_id(name)?,
                None if id >= 0x8000 && self.names().name(id).is_some() => continue,
                None => id,
            };
            out.insert(PropValue {
                tag: PropTag::new(id, value.tag.prop_type()),
                data: value.data.clone(),
            });
        }
        Ok(out)
    }

    /// A message of another file, as [`Transaction::import_props`], with all that it holds.
    ///
    /// # Errors
    /// As [`Transaction::named_id`].
    pub fn import_message(&mut self, message: &MessageData, from: &NameMap) -> Result<MessageData> {
        let mut out = MessageData {
            props: self.import_props(&message.props, from)?,
            ..MessageData::default()
        };
        for recipient in &message.recipients {
            out.recipients.push(self.import_props(recipient, from)?);
        }
        for attachment in &message.attachments {
            let embedded = match &attachment.embedded {
                Some(m) => Some(Box::new(self.import_message(m, from)?)),
                None => None,
            };
            out.attachments.push(AttachmentData {
                props: self.import_props(&attachment.props, from)?,
                embedded,
            });
        }
        Ok(out)
    }
}
