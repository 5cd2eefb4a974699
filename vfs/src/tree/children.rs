//! The names in one directory.
//!
//! Where names that differ in case are one, a second index finds a name by what its spellings have in
//! common, so that a directory of a hundred thousand names costs no more there than elsewhere. What is no
//! directory has neither, and takes one word.

use std::collections::{BTreeMap, HashMap};

use crate::path::Names;

#[derive(Default)]
pub(crate) struct Children(Option<Box<Index>>);

#[derive(Clone, Default)]
struct Index {
    exact: BTreeMap<String, u64>,
    /// Only where it says more than `exact`.
    folded: HashMap<String, u64>,
}

impl Clone for Children {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Children {
    pub fn get(&self, name: &str, names: Names) -> Option<u64> {
        let index = self.0.as_deref()?;
        let exact = index.exact.get(name);
        match names {
            Names::Any => exact.copied(),
            Names::Windows => exact
                .or_else(|| index.folded.get(&names.fold(name)))
                .copied(),
        }
    }

    pub fn insert(&mut self, name: &str, id: u64, names: Names) {
        let index = self.0.get_or_insert_default();
        index.exact.insert(name.to_owned(), id);
        if names != Names::Any {
            index.folded.insert(names.fold(name), id);
        }
    }

    /// Removes the name, if it is this node's.
    pub fn remove(&mut self, name: &str, id: u64, names: Names) {
        let Some(index) = self.0.as_deref_mut() else {
            return;
        };
        if index.exact.get(name) == Some(&id) {
            index.exact.remove(name);
        }
        if names != Names::Any {
            let folded = names.fold(name);
            if index.folded.get(&folded) == Some(&id) {
                index.folded.remove(&folded);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.0.as_deref().map_or(0, |i| i.exact.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names and nodes, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &u64)> {
        self.0.iter().flat_map(|i| &i.exact)
    }

    pub fn values(&self) -> impl Iterator<Item = &u64> {
        self.iter().map(|(_, id)| id)
    }
}
