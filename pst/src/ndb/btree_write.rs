//! Batched edits of a B-tree, by copy-on-write ([MS-PST] 2.2.2.7.7, 2.6.1.1.8).
//!
//! All edits of a tree are merged into it in one descent: only leaf pages with edits and their
//! ancestors are written anew. Neighbouring changed pages are filled up together, an underfull
//! result takes in an unchanged neighbour, empty pages vanish, and the root rises and falls as
//! needed. Splits leave pages under 90 % full (2.6.1.2.1).

use std::collections::BTreeMap;

use super::Ndb;
use super::btree::{BtEntry, BtLeaf, BtPage, MAX_LEVEL};
use super::bytes::put;
use super::format::Format;
use super::page::seal_page;
use crate::{Bref, PstError, Result};

/// Where new pages go and old ones are given back.
pub(crate) trait PageSpace {
    /// Takes space and a BID for a page.
    fn alloc_page(&mut self) -> Result<Bref>;
    /// Writes a sealed page.
    fn write_page(&mut self, bref: Bref, page: &[u8]) -> Result<()>;
    /// Gives a page back.
    fn free_page(&mut self, bref: Bref) -> Result<()>;
}

/// The entries of a page, in memory.
enum Content<E> {
    Leaf(Vec<E>),
    /// Level of the page (1 and up) and its entries.
    Inner(u8, Vec<BtEntry>),
}

impl<E: BtLeaf> Content<E> {
    fn read(page: &BtPage) -> Result<Self> {
        if page.level == 0 {
            (0..page.count())
                .map(|i| page.leaf(i))
                .collect::<Result<_>>()
                .map(Self::Leaf)
        } else {
            let level = page.level;
            (0..page.count())
                .map(|i| page.child(i))
                .collect::<Result<_>>()
                .map(|e| Self::Inner(level, e))
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(e) => e.len(),
            Self::Inner(_, e) => e.len(),
        }
    }

    /// The most entries that a page with this content can hold.
    fn max(&self, format: &Format) -> usize {
        let size = match self {
            Self::Leaf(_) => E::size(format),
            Self::Inner(..) => format.btentry,
        };
        format.btree_entries / size
    }

    fn append(&mut self, other: Self) -> Result<()> {
        match (self, other) {
            (Self::Leaf(a), Self::Leaf(mut b)) => a.append(&mut b),
            (Self::Inner(l, a), Self::Inner(m, mut b)) if *l == m => a.append(&mut b),
            _ => {
                return Err(PstError::corrupt(
                    "cLevel",
                    0,
                    "neighbouring pages differ in level",
                ));
            }
        }
        Ok(())
    }
}

/// The largest count under 90 % of `max`.
fn comfortable(max: usize) -> usize {
    ((max * 9).div_ceil(10) - 1).max(1)
}

struct Editor<'a, E: BtLeaf, S: PageSpace> {
    ndb: &'a Ndb,
    space: &'a mut S,
    edits: &'a BTreeMap<u64, Option<E>>,
}

impl<E: BtLeaf, S: PageSpace> Editor<'_, E, S> {
    /// The content of `page` after the edits of keys in `low..high` (no bound: `None`).
    fn edited(&mut self, page: &BtPage, low: u64, high: Option<u64>) -> Result<Content<E>> {
        if page.level == 0 {
            let mut merged: BTreeMap<u64, E> = BTreeMap::new();
            for i in 0..page.count() {
                let entry = page.leaf::<E>(i)?;
                merged.insert(entry.key(), entry);
            }
            for (key, edit) in self.range(low, high) {
                match edit {
                    Some(entry) => merged.insert(*key, *entry),
                    None => merged.remove(key),
                };
            }
            return Ok(Content::Leaf(merged.into_values().collect()));
        }

        // A child answers for the keys from its own up to the next child's; the first one also
        // for smaller keys, the last one for all above.
        let mut out: Vec<BtEntry> = Vec::new();
        let mut run: Option<Content<E>> = None;
        for i in 0..page.count() {
            let entry = page.child(i)?;
            let from = if i == 0 { low } else { page.key::<E>(i)? };
            let to = if i + 1 < page.count() {
                Some(page.key::<E>(i + 1)?)
            } else {
                high
            };
            if self.range(from, to).next().is_some() {
                let child = self.ndb.bt_child::<E>(page, i)?;
                let content = self.edited(&child, from, to)?;
                self.space.free_page(child.bref)?;
                match &mut run {
                    Some(run) => run.append(content)?,
                    None => run = Some(content),
                }
                continue;
            }
            if let Some(mut content) = run.take() {
                let sparse = content.len() * 3 < content.max(self.ndb.format());
                if content.len() > 0 && sparse {
                    let child = self.ndb.bt_child::<E>(page, i)?;
                    content.append(Content::read(&child)?)?;
                    self.space.free_page(child.bref)?;
                    run = Some(content);
                    continue;
                }
                self.write(content, &mut out)?;
            }
            out.push(entry);
        }
        if let Some(mut content) = run {
            let sparse = content.len() * 3 < content.max(self.ndb.format());
            if content.len() > 0
                && sparse
                && let Some(last) = out.pop()
            {
                let before = self.ndb.bt_page::<E>(last.bref)?;
                let mut joined = Content::read(&before)?;
                joined.append(content)?;
                self.space.free_page(last.bref)?;
                content = joined;
            }
            self.write(content, &mut out)?;
        }
        Ok(Content::Inner(page.level, out))
    }

    fn range(&self, low: u64, high: Option<u64>) -> impl Iterator<Item = (&u64, &Option<E>)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let empty = high.is_some_and(|h| h <= low);
        let bounds = if empty {
            (Included(low), Excluded(low.saturating_add(1)))
        } else {
            (Included(low), high.map_or(Unbounded, Excluded))
        };
        self.edits.range(bounds).filter(move |_| !empty)
    }

    /// Writes content as pages; their entries go to `out`.
    fn write(&mut self, content: Content<E>, out: &mut Vec<BtEntry>) -> Result<()> {
        let format = self.ndb.format();
        let max = content.max(format);
        let len = content.len();
        // A page that stays one page need not be split for the sake of the 90 %.
        let pages = if len <= comfortable(max) {
            1
        } else {
            len.div_ceil(comfortable(max))
        };
        let (share, extra) = (len / pages, len % pages);
        let mut leaf = Vec::new();
        let mut inner = Vec::new();
        let level = match content {
            Content::Leaf(e) => {
                leaf = e;
                0
            }
            Content::Inner(level, e) => {
                inner = e;
                level
            }
        };
        let (mut leaf, mut inner) = (leaf.into_iter(), inner.into_iter());
        for p in 0..pages {
            let n = share + usize::from(p < extra);
            if n == 0 {
                continue;
            }
            let chunk = if level == 0 {
                Content::Leaf(leaf.by_ref().take(n).collect())
            } else {
                Content::Inner(level, inner.by_ref().take(n).collect())
            };
            out.push(self.write_page(&chunk)?);
        }
        Ok(())
    }

    fn write_page(&mut self, content: &Content<E>) -> Result<BtEntry> {
        let bref = self.space.alloc_page()?;
        let (page, key) = encode_page(self.ndb.format(), content, bref);
        self.space.write_page(bref, &page)?;
        Ok(BtEntry { key, bref })
    }
}

fn encode_page<E: BtLeaf>(format: &Format, content: &Content<E>, bref: Bref) -> (Vec<u8>, u64) {
    let mut page = vec![0u8; format.page_size];
    let mut key = 0;
    let (level, size) = match content {
        Content::Leaf(entries) => {
            let size = E::size(format);
            for (i, e) in entries.iter().enumerate() {
                if i == 0 {
                    key = e.key();
                }
                if let Some(b) = page.get_mut(i * size..(i + 1) * size) {
                    e.encode(format, b);
                }
            }
            (0, size)
        }
        Content::Inner(level, entries) => {
            let (size, w) = (format.btentry, format.bid_size);
            for (i, e) in entries.iter().enumerate() {
                if i == 0 {
                    key = e.key;
                }
                format.put_id(&mut page, i * size, e.key);
                format.put_id(&mut page, i * size + w, e.bref.bid.0);
                format.put_id(&mut page, i * size + 2 * w, e.bref.ib);
            }
            (*level, size)
        }
    };
    let (e, n) = (format.btree_entries, format.count_size);
    for (i, count) in [content.len(), e / size].into_iter().enumerate() {
        let count = count.to_le_bytes();
        put(&mut page, e + i * n, count.get(..n).unwrap_or_default());
    }
    put(&mut page, e + 2 * n, &[size as u8, level]);
    seal_page(format, &mut page, E::PAGE, bref.ib, bref.bid);
    (page, key)
}

/// An empty leaf page: the root of an empty tree.
pub(crate) fn empty_root<E: BtLeaf>(format: &Format, bref: Bref) -> Vec<u8> {
    encode_page(format, &Content::<E>::Leaf(Vec::new()), bref).0
}

/// Merges `edits` (by key: the new entry, or `None` to remove) into the tree of `ndb`; returns
/// the new root. Edits that change nothing must have been left out by the caller.
///
/// # Errors
/// [`PstError::Limit`] if the tree would become too deep; errors of reading and allocating.
pub(crate) fn apply<E: BtLeaf, S: PageSpace>(
    ndb: &Ndb,
    space: &mut S,
    edits: &BTreeMap<u64, Option<E>>,
) -> Result<Bref> {
    let root = ndb.bt_root::<E>()?;
    if edits.is_empty() {
        return Ok(root.bref);
    }
    let mut editor = Editor { ndb, space, edits };
    let mut content = editor.edited(&root, 0, None)?;
    editor.space.free_page(root.bref)?;
    loop {
        match &content {
            Content::Inner(_, entries) if entries.len() == 1 => {
                let [only] = entries.as_slice() else { continue };
                return Ok(only.bref);
            }
            Content::Inner(_, entries) if entries.is_empty() => {
                content = Content::Leaf(Vec::new());
            }
            _ => {}
        }
        if content.len() <= comfortable(content.max(ndb.format())) {
            return Ok(editor.write_page(&content)?.bref);
        }
        let level = match &content {
            Content::Leaf(_) => 1,
            Content::Inner(level, _) => level + 1,
        };
        if level > MAX_LEVEL {
            return Err(PstError::Limit {
                what: "B-tree levels",
                found: u64::from(level),
                limit: u64::from(MAX_LEVEL),
            });
        }
        let mut above = Vec::new();
        editor.write(content, &mut above)?;
        content = Content::Inner(level, above);
    }
}
