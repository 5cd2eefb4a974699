//! The properties of one object, row or map ([MS-PST] 2.3.3, 2.3.4.4).

use std::collections::BTreeMap;

use super::prop::{PropTag, PropValue};
use crate::Result;

/// An ordered set of properties, at most one per property id.
#[derive(Clone, Debug, Default)]
pub struct PropBag(BTreeMap<u16, PropValue>);

impl PropBag {
    /// An empty bag.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The property with this id.
    #[must_use]
    pub fn get(&self, id: u16) -> Option<&PropValue> {
        self.0.get(&id)
    }

    /// The property with exactly this tag.
    #[must_use]
    pub fn get_tag(&self, tag: PropTag) -> Option<&PropValue> {
        self.0.get(&tag.id()).filter(|p| p.tag == tag)
    }

    /// Puts a property in, replacing one of the same id.
    pub fn insert(&mut self, value: PropValue) -> Option<PropValue> {
        self.0.insert(value.tag.id(), value)
    }

    /// Takes a property out.
    pub fn remove(&mut self, id: u16) -> Option<PropValue> {
        self.0.remove(&id)
    }

    /// The properties in id order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &PropValue> + ExactSizeIterator {
        self.0.values()
    }

    /// How many properties there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// [`PropValue::as_i32`] of the property with this id.
    #[must_use]
    pub fn i32(&self, id: u16) -> Option<i32> {
        self.get(id)?.as_i32()
    }

    /// [`PropValue::as_str`] of the property with this id.
    #[must_use]
    pub fn str(&self, id: u16) -> Option<String> {
        self.get(id)?.as_str()
    }

    /// Whether both bags hold the same tags with the same content.
    ///
    /// # Errors
    /// What reading the values gives.
    pub fn same_content(&self, other: &Self) -> Result<bool> {
        if self.len() != other.len() {
            return Ok(false);
        }
        for (a, b) in self.iter().zip(other.iter()) {
            if a.tag != b.tag || !a.data.same_content(&b.data)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl FromIterator<PropValue> for PropBag {
    fn from_iter<I: IntoIterator<Item = PropValue>>(iter: I) -> Self {
        let mut bag = Self::new();
        bag.extend(iter);
        bag
    }
}

impl Extend<PropValue> for PropBag {
    fn extend<I: IntoIterator<Item = PropValue>>(&mut self, iter: I) {
        for v in iter {
            self.insert(v);
        }
    }
}

impl IntoIterator for PropBag {
    type Item = PropValue;
    type IntoIter = std::collections::btree_map::IntoValues<u16, PropValue>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_values()
    }
}

impl<'a> IntoIterator for &'a PropBag {
    type Item = &'a PropValue;
    type IntoIter = std::collections::btree_map::Values<'a, u16, PropValue>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.values()
    }
}
