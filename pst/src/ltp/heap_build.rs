//! Heap-on-node, building ([MS-PST] 2.3.1).
//!
//! Items go into blocks of the file's format, full ones being [`Format::max_data`] bytes:
//!
//! ```text
//! header (12 | 2 | 66) | items … | pad to 2 | HNPAGEMAP | zero padding, in all blocks but the last
//! ```
//!
//! The header is HNHDR in block 0, HNBITMAPHDR in block 8 and every 128 blocks after it, else
//! HNPAGEHDR. The fill levels in the two kinds of map tell how much of a full block is free.

use super::heap::{ClientSig, Hid, MAX_BLOCKS};
use crate::ndb::Format;
use crate::ndb::bytes::put;
use crate::ndb::format::UNICODE;
use crate::{PstError, Result};

/// Longest heap item, in bytes ([MS-PST] 2.3.3.3): longer values go to a subnode.
pub const MAX_ITEM: usize = 3580;
/// Most items in one block: 11 bits of a HID, index 0 unused.
const MAX_ITEMS: usize = 0x7FF;
/// How many of the last blocks are tried for room before a new one begins.
const OPEN_BLOCKS: usize = 4;

#[derive(Default)]
struct Page {
    header: usize,
    items: Vec<u8>,
    /// End of each item in `items`.
    ends: Vec<usize>,
}

impl Page {
    fn used_with(&self, extra_items: usize, extra_bytes: usize) -> usize {
        let body = self.header + self.items.len() + extra_bytes;
        body.next_multiple_of(2) + 4 + 2 * (self.ends.len() + extra_items + 1)
    }

    fn has_room(&self, len: usize, block: usize) -> bool {
        self.ends.len() < MAX_ITEMS && self.used_with(1, len) <= block
    }
}

/// Bytes of the header of block `i`.
pub(crate) const fn header_size(i: usize) -> usize {
    match i {
        0 => 12,
        _ if has_bitmap(i) => 66,
        _ => 2,
    }
}

/// Whether block `i` begins with an HNBITMAPHDR.
pub(crate) const fn has_bitmap(i: usize) -> bool {
    i >= 8 && (i - 8).is_multiple_of(128)
}

/// The fill level of a block with `free` bytes free ([MS-PST] 2.3.1.2).
pub(crate) const fn fill_level(free: usize) -> u8 {
    match free {
        3584.. => 0,
        2560.. => 1,
        2048.. => 2,
        1792.. => 3,
        1536.. => 4,
        1280.. => 5,
        1024.. => 6,
        768.. => 7,
        512.. => 8,
        256.. => 9,
        128.. => 10,
        64.. => 11,
        32.. => 12,
        16.. => 13,
        8.. => 14,
        _ => 15,
    }
}

/// Builds a heap item by item.
pub struct HeapBuilder {
    client_sig: ClientSig,
    user_root: Hid,
    pages: Vec<Page>,
    block: usize,
}

impl HeapBuilder {
    /// An empty heap that will hold what `client_sig` says, for a Unicode file.
    #[must_use]
    pub fn new(client_sig: ClientSig) -> Self {
        Self::for_format(client_sig, &UNICODE)
    }

    /// An empty heap for a file of this format.
    #[must_use]
    pub fn for_format(client_sig: ClientSig, format: &Format) -> Self {
        Self {
            block: format.max_data(),
            client_sig,
            user_root: Hid::NONE,
            pages: vec![Page {
                header: header_size(0),
                ..Page::default()
            }],
        }
    }

    /// Bytes of data in a full block of the file that the heap is for.
    #[must_use]
    pub const fn block_data(&self) -> usize {
        self.block
    }

    /// Adds an item of 1 to [`MAX_ITEM`] bytes.
    ///
    /// # Errors
    /// [`PstError::Refused`] for another length, [`PstError::Limit`] where the heap has as many
    /// blocks as a HID can address.
    pub fn alloc(&mut self, item: &[u8]) -> Result<Hid> {
        if item.is_empty() || item.len() > MAX_ITEM {
            return Err(PstError::Refused(format!(
                "a heap item of {} bytes",
                item.len()
            )));
        }
        let first = self.pages.len().saturating_sub(OPEN_BLOCKS);
        let tail = self.pages.get(first..).unwrap_or_default();
        let at = match tail.iter().position(|p| p.has_room(item.len(), self.block)) {
            Some(i) => first + i,
            None => {
                let i = self.pages.len();
                if i >= MAX_BLOCKS {
                    return Err(PstError::Limit {
                        what: "heap blocks",
                        found: i as u64 + 1,
                        limit: MAX_BLOCKS as u64,
                    });
                }
                self.pages.push(Page {
                    header: header_size(i),
                    ..Page::default()
                });
                i
            }
        };
        let full = || PstError::Refused("heap block full".into());
        let page = self.pages.get_mut(at).ok_or_else(full)?;
        page.items.extend_from_slice(item);
        page.ends.push(page.items.len());
        let block = u16::try_from(at).map_err(|_| full())?;
        let index = u16::try_from(page.ends.len()).map_err(|_| full())?;
        Ok(Hid::new(block, index))
    }

    /// Replaces the bytes of an item by as many others.
    ///
    /// # Errors
    /// [`PstError::Refused`] if there is no such item or its length differs.
    pub fn set(&mut self, hid: Hid, bytes: &[u8]) -> Result<()> {
        let refused = || PstError::Refused(format!("{hid} is no item of {} bytes", bytes.len()));
        let page = self.pages.get_mut(hid.block()).ok_or_else(refused)?;
        let i = hid.index().checked_sub(1).ok_or_else(refused)?;
        let end = *page.ends.get(i).ok_or_else(refused)?;
        let start = match i.checked_sub(1) {
            Some(before) => *page.ends.get(before).ok_or_else(refused)?,
            None => 0,
        };
        let target = page.items.get_mut(start..end).ok_or_else(refused)?;
        if target.len() != bytes.len() {
            return Err(refused());
        }
        target.copy_from_slice(bytes);
        Ok(())
    }

    /// Names the item with which the layer above begins.
    pub const fn set_user_root(&mut self, hid: Hid) {
        self.user_root = hid;
    }

    /// The blocks, ready to be written as they are.
    #[must_use]
    pub fn finish(self) -> Vec<Vec<u8>> {
        let levels: Vec<u8> = self
            .pages
            .iter()
            .map(|p| fill_level(self.block - p.used_with(0, 0)))
            .collect();
        let nibbles = |from: usize, n: usize| -> Vec<u8> {
            let level = |i: usize| levels.get(i).copied().unwrap_or(0);
            (0..n / 2)
                .map(|k| level(from + 2 * k) | (level(from + 2 * k + 1) << 4))
                .collect()
        };
        let last = self.pages.len() - 1;
        let mut out = Vec::with_capacity(self.pages.len());
        for (i, page) in self.pages.iter().enumerate() {
            let mut b = vec![0u8; page.header];
            b.extend_from_slice(&page.items);
            b.resize(b.len().next_multiple_of(2), 0);
            let map = b.len();
            b.extend_from_slice(&(page.ends.len() as u16).to_le_bytes());
            b.extend_from_slice(&0u16.to_le_bytes());
            b.extend_from_slice(&(page.header as u16).to_le_bytes());
            for end in &page.ends {
                b.extend_from_slice(&((page.header + end) as u16).to_le_bytes());
            }
            if i != last {
                b.resize(self.block, 0);
            }
            put(&mut b, 0, &(map as u16).to_le_bytes());
            if i == 0 {
                put(&mut b, 2, &[0xEC, self.client_sig.0]);
                put(&mut b, 4, &self.user_root.0.to_le_bytes());
                put(&mut b, 8, &nibbles(0, 8));
            } else if has_bitmap(i) {
                put(&mut b, 2, &nibbles(i, 128));
            }
            out.push(b);
        }
        out
    }
}
