//! Named properties keep their meaning, not their number: the ids from 0x8000 up are handed out
//! per file ([MS-PST] 2.4.7), so an object that goes from one PST to another is translated
//! through both name maps.

use pst::ltp::{NameMap, PropBag, PropTag, PropValue};
use pst::messaging::{AttachmentData, MessageData, Transaction};

use crate::error::{Result, SyncError};

const FIRST_NAMED: u16 = 0x8000;

/// The message with the ids of `to` in place of those of `from`.
pub(crate) fn message(
    data: MessageData,
    from: &NameMap,
    to: &mut Transaction,
) -> Result<MessageData> {
    let recipients = data
        .recipients
        .into_iter()
        .map(|r| bag(&r, from, to))
        .collect::<Result<Vec<_>>>()?;
    let attachments = data
        .attachments
        .into_iter()
        .map(|a| {
            Ok(AttachmentData {
                props: bag(&a.props, from, to)?,
                embedded: a
                    .embedded
                    .map(|m| message(*m, from, to))
                    .transpose()?
                    .map(Box::new),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(MessageData {
        props: bag(&data.props, from, to)?,
        recipients,
        attachments,
    })
}

/// The properties with the ids of `to` in place of those of `from`.
pub(crate) fn bag(props: &PropBag, from: &NameMap, to: &mut Transaction) -> Result<PropBag> {
    from.visible(props)
        .cloned()
        .map(|value| translate(value, from, to))
        .collect()
}

fn translate(value: PropValue, from: &NameMap, to: &mut Transaction) -> Result<PropValue> {
    let id = value.tag.id();
    if id < FIRST_NAMED {
        return Ok(value);
    }
    // An id that its own file does not name has no meaning to carry over, but dropping a user's
    // data silently is worse: it keeps its number.
    let Some(name) = from.name(id) else {
        return Ok(value);
    };
    let id = to.named_id(name).map_err(SyncError::from)?;
    Ok(PropValue {
        tag: PropTag::new(id, value.tag.prop_type()),
        data: value.data,
    })
}
