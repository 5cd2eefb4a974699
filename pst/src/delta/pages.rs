//! Walks over node B-trees that leave out what cannot have changed ([MS-PST] 2.2.2.7.7).

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::ndb::{BtEntry, BtPage, NbtEntry, Ndb};
use crate::{PstError, Result};

/// Calls `found` with each node that is not the same in both trees, in NID order. Subtrees under the
/// same BREF are left out where `skip` says that this means they are equal.
pub(super) fn differing(
    old: &Ndb,
    new: &Ndb,
    skip: bool,
    found: &mut dyn FnMut(Option<NbtEntry>, Option<NbtEntry>) -> Result<()>,
) -> Result<()> {
    let (mut a, mut b) = (Cursor::new(old)?, Cursor::new(new)?);
    loop {
        match (a.peek()?, b.peek()?) {
            (At::End, At::End) => return Ok(()),
            (At::Subtree(x, _), At::Subtree(y, _)) if skip && x.bref == y.bref => {
                a.advance();
                b.advance();
            }
            // The taller side first, then the one that begins earlier: what both share comes to
            // lie side by side.
            (At::Subtree(x, l), At::Subtree(y, m)) => {
                if l > m || l == m && x.key <= y.key {
                    a.descend()?;
                } else {
                    b.descend()?;
                }
            }
            (At::Subtree(x, _), At::Node(n)) => {
                if key(&n) < x.key {
                    b.advance();
                    found(None, Some(n))?;
                } else {
                    a.descend()?;
                }
            }
            (At::Node(n), At::Subtree(x, _)) => {
                if key(&n) < x.key {
                    a.advance();
                    found(Some(n), None)?;
                } else {
                    b.descend()?;
                }
            }
            (At::Subtree(..), At::End) => a.descend()?,
            (At::End, At::Subtree(..)) => b.descend()?,
            (At::Node(x), At::Node(y)) if x.nid == y.nid => {
                a.advance();
                b.advance();
                if x != y || !skip {
                    found(Some(x), Some(y))?;
                }
            }
            (At::Node(x), At::Node(y)) if x.nid < y.nid => {
                a.advance();
                found(Some(x), None)?;
            }
            (At::Node(x), At::End) => {
                a.advance();
                found(Some(x), None)?;
            }
            (_, At::Node(y)) => {
                b.advance();
                found(None, Some(y))?;
            }
        }
    }
}

fn key(entry: &NbtEntry) -> u64 {
    u64::from(entry.nid.0)
}

/// What a cursor stands before.
enum At {
    /// A page of this level, not entered yet.
    Subtree(BtEntry, u8),
    Node(NbtEntry),
    End,
}

struct Cursor<'a> {
    ndb: &'a Ndb,
    stack: Vec<(Arc<BtPage>, usize)>,
    last: Option<u64>,
}

impl<'a> Cursor<'a> {
    fn new(ndb: &'a Ndb) -> Result<Self> {
        Ok(Self {
            ndb,
            stack: vec![(ndb.bt_root::<NbtEntry>()?, 0)],
            last: None,
        })
    }

    fn peek(&mut self) -> Result<At> {
        loop {
            let Some((page, i)) = self.stack.last() else {
                return Ok(At::End);
            };
            if *i >= page.count() {
                self.stack.pop();
                self.advance();
                continue;
            }
            if page.level > 0 {
                let mut child = page.child(*i)?;
                // As in NIDs, the upper half may be rubbish.
                child.key &= 0xFFFF_FFFF;
                return Ok(At::Subtree(child, page.level - 1));
            }
            let entry = page.leaf::<NbtEntry>(*i)?;
            if self.last.is_some_and(|last| last >= key(&entry)) {
                let detail = format!("entry {i}: {} does not follow the one before", entry.nid);
                return Err(PstError::corrupt("btkey", page.bref.ib, detail));
            }
            return Ok(At::Node(entry));
        }
    }

    /// Passes what the cursor stands before.
    fn advance(&mut self) {
        if let Some((page, i)) = self.stack.last_mut() {
            if page.level == 0 {
                self.last = page.key::<NbtEntry>(*i).ok();
            }
            *i += 1;
        }
    }

    /// Enters the page that the cursor stands before.
    fn descend(&mut self) -> Result<()> {
        let Some((page, i)) = self.stack.last() else {
            return Ok(());
        };
        let from = page.child(*i)?.key & 0xFFFF_FFFF;
        let child = self.ndb.bt_child::<NbtEntry>(page, *i)?;
        // Where a page begins before its parent says, look-ups miss what it holds.
        if child.count() > 0 && child.key::<NbtEntry>(0)? < from {
            let detail = format!("the page begins before its key {from:#x}");
            return Err(PstError::corrupt("btkey", child.bref.ib, detail));
        }
        self.stack.push((child, 0));
        Ok(())
    }
}

/// An interval of NIDs, and all nodes that a tree has in it.
pub(super) struct Span {
    /// The first NID of the interval.
    pub from: u64,
    /// One past the last.
    pub until: u64,
    /// The nodes.
    pub nodes: Vec<NbtEntry>,
}

/// The intervals of NIDs in which a tree may differ from what it was before the pages in `written`
/// (which lie under those in `above`) were written; see the head of [`super`].
///
/// `edges` gives the first and the last NID that was there before in an interval.
pub(super) fn changed_spans(
    ndb: &Ndb,
    written: &BTreeSet<u64>,
    above: &BTreeSet<u64>,
    edges: &dyn Fn(u64, u64) -> Option<(u64, u64)>,
) -> Result<Vec<Span>> {
    let mut run = Spans {
        ndb,
        written,
        above,
        edges,
        out: Vec::new(),
    };
    let root = ndb.bt_root::<NbtEntry>()?;
    if written.contains(&root.bref.ib) || above.contains(&root.bref.ib) {
        run.visit(&root, 0, u64::MAX)?;
    }
    Ok(run.out)
}

struct Spans<'a> {
    ndb: &'a Ndb,
    written: &'a BTreeSet<u64>,
    above: &'a BTreeSet<u64>,
    edges: &'a dyn Fn(u64, u64) -> Option<(u64, u64)>,
    out: Vec<Span>,
}

impl Spans<'_> {
    /// Depth is bounded by the levels, which fall by one.
    fn visit(&mut self, page: &BtPage, from: u64, until: u64) -> Result<()> {
        if page.level == 0 {
            let mut nodes = Vec::with_capacity(page.count());
            for i in 0..page.count() {
                nodes.push(page.leaf::<NbtEntry>(i)?);
            }
            self.out.push(Span { from, until, nodes });
            return Ok(());
        }
        let mut start = from;
        for i in 0..page.count() {
            let child = page.child(i)?;
            let end = if i + 1 < page.count() {
                page.key::<NbtEntry>(i + 1)?
            } else {
                until
            };
            let ib = child.bref.ib;
            if self.written.contains(&ib) || self.above.contains(&ib) {
                let child = self.ndb.bt_child::<NbtEntry>(page, i)?;
                self.visit(&child, start, end)?;
            } else if let Some((first, last)) = (self.edges)(start, end) {
                // A page that was not written holds what it held. What was known from its first key on
                // was under it or behind it, what was known up to its last key under it or before
                // it: so nothing between these two is gone.
                let child = self.ndb.bt_child::<NbtEntry>(page, i)?;
                let left = child.count() > 0 && child.key::<NbtEntry>(0)? <= first;
                if !left || !self.holds(&child, last)? {
                    let nodes = self.nodes_in(start, end)?;
                    self.out.push(Span {
                        from: start,
                        until: end,
                        nodes,
                    });
                }
            }
            start = end;
        }
        if page.count() == 0 {
            let nodes = Vec::new();
            self.out.push(Span { from, until, nodes });
        }
        Ok(())
    }

    /// Whether there is a node under a page.
    fn holds(&self, page: &Arc<BtPage>, nid: u64) -> Result<bool> {
        let mut page = Arc::clone(page);
        loop {
            let Some(i) = page.upper_bound::<NbtEntry>(nid)?.checked_sub(1) else {
                return Ok(false);
            };
            if page.level == 0 {
                return Ok(page.key::<NbtEntry>(i)? == nid);
            }
            page = self.ndb.bt_child::<NbtEntry>(&page, i)?;
        }
    }

    fn nodes_in(&self, from: u64, until: u64) -> Result<Vec<NbtEntry>> {
        let from = crate::Nid(u32::try_from(from).unwrap_or(u32::MAX));
        let mut nodes = Vec::new();
        for entry in self.ndb.nodes_from(from) {
            let entry = entry?;
            if key(&entry) >= until {
                break;
            }
            nodes.push(entry);
        }
        Ok(nodes)
    }
}
