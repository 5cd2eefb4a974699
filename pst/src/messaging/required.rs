//! The properties that every message must have ([MS-PST] 2.4.5.1.1, 2.4.5.3.1, 2.4.6.2.1).
//!
//! A transaction writes what it is given and adds nothing: it has no clock, and what is carried from
//! another file must stay what it was. Whoever makes a *new* message completes it first.

use super::read::{AttachmentData, MessageData};
use super::tags;
use super::value::value_len;
use crate::ltp::{PropBag, PropValue};

/// PidTagCreationTime.
const CREATION_TIME: u16 = 0x3007;
/// PidTagObjectType of a recipient: MAPI_MAILUSER.
const MAIL_USER: i32 = 6;

/// The length of all values of a bag, in bytes.
fn size_of(props: &PropBag) -> u64 {
    props.iter().map(value_len).sum()
}

/// A size as properties have it: 2 GB and more is the most that they can say.
fn as_size(bytes: u64) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

fn add(props: &mut PropBag, value: PropValue) {
    if props.get(value.tag.id()).is_none() {
        props.insert(value);
    }
}

impl MessageData {
    /// Adds the properties that a message, its recipients and its attachments must have and these
    /// lack: class (IPM.Note), flags (read), size, status, times of creation and change, search key.
    ///
    /// `time` is a FILETIME: 100 ns since 1601 in UTC. `search_key` names the message for as long as
    /// it lives: 16 bytes that no other has.
    pub fn complete(&mut self, time: u64, search_key: [u8; 16]) {
        for recipient in &mut self.recipients {
            add(recipient, PropValue::i32(tags::RECIPIENT_TYPE, 1));
            add(recipient, PropValue::i32(0x0FFE, MAIL_USER));
            add(recipient, PropValue::i32(0x3900, 0));
        }
        for attachment in &mut self.attachments {
            attachment.complete(time, search_key);
        }
        let flags = if self.attachments.is_empty() {
            tags::FLAG_READ
        } else {
            tags::FLAG_READ | tags::FLAG_HAS_ATTACH
        };
        for value in [
            PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
            PropValue::i32(tags::MESSAGE_FLAGS, flags),
            PropValue::i32(tags::MESSAGE_STATUS, 0),
            PropValue::time(CREATION_TIME, time),
            PropValue::time(tags::LAST_MODIFICATION_TIME, time),
            PropValue::binary(tags::SEARCH_KEY, search_key.to_vec()),
        ] {
            add(&mut self.props, value);
        }
        let size = as_size(self.size());
        add(&mut self.props, PropValue::i32(tags::MESSAGE_SIZE, size));
    }

    /// The length of all values of the message, its recipients and its attachments, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        let recipients: u64 = self.recipients.iter().map(size_of).sum();
        let attachments: u64 = self.attachments.iter().map(AttachmentData::size).sum();
        size_of(&self.props) + recipients + attachments
    }
}

impl AttachmentData {
    fn complete(&mut self, time: u64, search_key: [u8; 16]) {
        let method = if let Some(inner) = &mut self.embedded {
            inner.complete(time, search_key);
            tags::METHOD_EMBEDDED
        } else {
            1 // afByValue ([MS-OXCMSG] 2.2.2.9)
        };
        add(&mut self.props, PropValue::i32(tags::ATTACH_METHOD, method));
        // PidTagRenderingPosition: not shown in the body.
        add(&mut self.props, PropValue::i32(0x370B, -1));
        let size = as_size(self.size());
        add(&mut self.props, PropValue::i32(tags::ATTACH_SIZE, size));
    }

    fn size(&self) -> u64 {
        size_of(&self.props) + self.embedded.as_ref().map_or(0, |m| m.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays_and_what_is_missing_comes() {
        let mut m = MessageData {
            props: PropBag::from_iter([
                PropValue::string(tags::SUBJECT, "S"),
                PropValue::string(tags::MESSAGE_CLASS, "IPM.Task"),
            ]),
            recipients: vec![PropBag::new()],
            attachments: vec![AttachmentData {
                props: PropBag::from_iter([PropValue::binary(tags::ATTACH_DATA, vec![0; 900])]),
                embedded: None,
            }],
        };
        m.complete(7, [9; 16]);
        assert_eq!(m.props.str(tags::MESSAGE_CLASS).unwrap(), "IPM.Task");
        assert_eq!(m.props.i32(tags::MESSAGE_FLAGS), Some(0x11));
        assert!(m.props.i32(tags::MESSAGE_SIZE).unwrap() > 900);
        assert_eq!(m.recipients[0].i32(tags::RECIPIENT_TYPE), Some(1));
        let a = &m.attachments[0].props;
        assert_eq!(a.i32(tags::ATTACH_METHOD), Some(1));
        assert!(a.i32(tags::ATTACH_SIZE).unwrap() >= 900);
        let again = m.clone();
        m.complete(8, [1; 16]);
        assert!(m.props.same_content(&again.props).unwrap());
    }
}
