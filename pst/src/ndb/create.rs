//! A new, empty node database: header, maps, density list, and two trees without entries
//! ([MS-PST] 2.2.2.6, 2.6.1.1.2). The layers above fill in the mandatory nodes (2.4.1).

use super::Ndb;
use super::amap::{SLOTS, reserved};
use super::btree::{BbtEntry, NbtEntry};
use super::btree_write::empty_root;
use super::bytes::put;
use super::crypt::CryptMethod;
use super::format::{AMAP_SPAN, DLIST_OFFSET, FIRST_AMAP, Format, SLOT, UNICODE, map_pages};
use super::header::Header;
use super::maps::{dlist_page, map_page};
use super::page::PageType;
use crate::{Bid, Bref, Result};

impl Ndb {
    /// The bytes of a new Unicode file without nodes, with the encoding that Outlook chooses.
    #[must_use]
    pub fn create_empty_ndb() -> Vec<u8> {
        Self::create_empty_with(CryptMethod::Permute)
    }

    /// The bytes of a new Unicode file without nodes.
    #[must_use]
    pub fn create_empty_with(crypt: CryptMethod) -> Vec<u8> {
        Self::create_from(&UNICODE, crypt)
    }

    /// The bytes of a new file without nodes.
    ///
    /// # Errors
    /// [`PstError::Refused`](crate::PstError::Refused) for a format that is only read.
    pub fn create_empty_as(format: &'static Format, crypt: CryptMethod) -> Result<Vec<u8>> {
        format.require_writable()?;
        Ok(Self::create_from(format, crypt))
    }

    fn create_from(format: &'static Format, crypt: CryptMethod) -> Vec<u8> {
        let page = format.page_size as u64;
        let mut header = Header::new_empty(format, crypt);
        let mut bits = reserved(0);
        let first_free = FIRST_AMAP + 2 * page;
        header.nbt = Bref {
            bid: Bid(1),
            ib: first_free,
        };
        header.bbt = Bref {
            bid: Bid(2),
            ib: first_free + page,
        };
        header.bid_next_page = Bid(4);
        for bref in [header.nbt, header.bbt] {
            bits.set(
                ((bref.ib - FIRST_AMAP) / SLOT) as usize,
                (page / SLOT) as usize,
                true,
            );
        }
        header.file_eof = FIRST_AMAP + AMAP_SPAN;
        header.amap_last = FIRST_AMAP;
        header.amap_free = bits.free() as u64 * SLOT;

        let mut file = vec![0u8; header.file_eof as usize];
        put(&mut file, 0, &header.encode());
        let dlist = dlist_page(format, vec![(0, bits.free())], Bid(3));
        put(&mut file, DLIST_OFFSET as usize, &dlist);
        for (kind, offset) in map_pages(0) {
            let ib = FIRST_AMAP + offset;
            let full = [0xFFu8; SLOTS / 8];
            let content = if kind == PageType::AMap {
                bits.bytes()
            } else {
                &full
            };
            put(&mut file, ib as usize, &map_page(format, kind, ib, content));
        }
        put(
            &mut file,
            header.nbt.ib as usize,
            &empty_root::<NbtEntry>(format, header.nbt),
        );
        put(
            &mut file,
            header.bbt.ib as usize,
            &empty_root::<BbtEntry>(format, header.bbt),
        );
        file
    }
}
