//! Property values as a flow of chunks, wherever they lie.

use std::sync::Arc;

use crate::ltp::{NodeSource, PropBag, PropValue, ValueData};
use crate::ndb::Ndb;
use crate::{Bid, PstError, Result};

/// Calls `f` with the bytes of a value, in order, a block at a time. For an object value
/// (PtypObject): the bytes of its data, then the hash of its subnode tree where it has one.
///
/// # Errors
/// If a block cannot be read; errors of `f` are passed on.
pub fn for_each_chunk(value: &PropValue, f: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    match &value.data {
        ValueData::Bytes(bytes) => f(bytes),
        ValueData::Stream { ndb, bid, .. } => stream(ndb, *bid, f),
        ValueData::Payload(_) => {
            // The pieces of a payload know only one kind of error; ours waits beside.
            let mut ours = Ok(());
            value.data.for_each_chunk(|chunk| {
                if ours.is_ok() {
                    ours = f(chunk);
                }
            })?;
            ours
        }
        ValueData::Object(object) => match &object.content {
            Some(NodeSource::Stored {
                ndb,
                bid_data,
                bid_sub,
            }) => {
                if !bid_data.is_none() {
                    stream(ndb, *bid_data, f)?;
                }
                if !bid_sub.is_none() {
                    f(&crate::canonical::hash_tree(ndb, Bid::NONE, *bid_sub)?.0)?;
                }
                Ok(())
            }
            Some(NodeSource::Built(_)) => Err(PstError::Refused(
                "an object that was not written yet has no canonical form".into(),
            )),
            None => Ok(()),
        },
    }
}

fn stream(ndb: &Arc<Ndb>, bid: Bid, f: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let tree = ndb.data(bid)?;
    for i in 0..tree.block_count() {
        f(&tree.read_block(ndb, i)?)?;
    }
    Ok(())
}

/// The length of a value in bytes.
#[must_use]
pub fn value_len(value: &PropValue) -> u64 {
    match &value.data {
        ValueData::Bytes(bytes) => bytes.len() as u64,
        ValueData::Stream { len, .. } => *len,
        ValueData::Payload(payload) => payload.len(),
        ValueData::Object(object) => u64::from(object.size),
    }
}

/// Whether two values are equal, byte for byte; streams are compared by content.
pub(crate) fn same_value(a: &PropValue, b: &PropValue) -> Result<bool> {
    if a.tag != b.tag || value_len(a) != value_len(b) {
        return Ok(false);
    }
    match (&a.data, &b.data) {
        (ValueData::Bytes(x), ValueData::Bytes(y)) => return Ok(x == y),
        // The same blocks of one file: nothing to read.
        (
            ValueData::Stream { ndb, bid, .. },
            ValueData::Stream {
                ndb: other,
                bid: same,
                ..
            },
        ) if Arc::ptr_eq(ndb, other) && bid == same => return Ok(true),
        _ => {}
    }
    let hash = |v: &PropValue| -> Result<blake3::Hash> {
        let mut h = blake3::Hasher::new();
        for_each_chunk(v, &mut |chunk| {
            h.update(chunk);
            Ok(())
        })?;
        Ok(h.finalize())
    };
    Ok(hash(a)? == hash(b)?)
}

/// Puts `old`'s streams in the place of `new`'s where they are equal, so that a builder over the
/// file of `old` shares their blocks instead of writing them again.
pub(crate) fn reuse_streams(new: &mut PropBag, old: &PropBag) -> Result<()> {
    let mut shared = Vec::new();
    for value in new.iter() {
        if !matches!(value.data, ValueData::Stream { .. }) && value_len(value) < MIN_REUSE {
            continue;
        }
        if let Some(before) = old.get(value.tag.id())
            && matches!(before.data, ValueData::Stream { .. })
            && same_value(value, before)?
        {
            shared.push(before.clone());
        }
    }
    for value in shared {
        new.insert(value);
    }
    Ok(())
}

/// Values shorter than this lie in the heap and are never shared.
const MIN_REUSE: u64 = 4096;
