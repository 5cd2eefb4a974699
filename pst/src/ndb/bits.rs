//! The bits of one AMap: one for each 64-byte slot of its span ([MS-PST] 2.2.2.7.2).

use super::bytes::slice;
use super::format::{Format, MAP_BYTES, SLOT, map_pages};
use crate::{PstError, Result};

/// Bytes of one bitmap.
const BYTES: usize = MAP_BYTES as usize;
/// Slots that one AMap covers.
pub(crate) const SLOTS: usize = BYTES * 8;

/// The bits of one AMap. The first slot is the highest bit of the first byte.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bits([u8; BYTES]);

impl Bits {
    pub const EMPTY: Self = Self([0; BYTES]);

    pub fn from_page(format: &Format, page: &[u8]) -> Result<Self> {
        let bits = slice(page, format.page_data - BYTES, BYTES, "rgbAMapBits")?;
        bits.try_into()
            .map(Self)
            .map_err(|_| PstError::corrupt("rgbAMapBits", 0, "short page"))
    }

    pub const fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn get(&self, slot: usize) -> bool {
        self.0
            .get(slot / 8)
            .is_some_and(|b| b & (0x80 >> (slot % 8)) != 0)
    }

    pub fn set(&mut self, slot: usize, n: usize, on: bool) {
        let (mut at, end) = (slot, (slot + n).min(SLOTS));
        while at < end {
            let until = (at / 8 * 8 + 8).min(end);
            // From bit `at` to before bit `until` of one byte, the highest bit first.
            let mask = (0xFFu16 >> (at % 8)) & !(0xFFu16 >> (until - at / 8 * 8));
            if let Some(b) = self.0.get_mut(at / 8) {
                if on {
                    *b |= mask as u8;
                } else {
                    *b &= !(mask as u8);
                }
            }
            at = until;
        }
    }

    /// The first slot from `from` on whose bit is `on`; [`SLOTS`] if there is none.
    pub fn next(&self, from: usize, on: bool) -> usize {
        let mut at = from;
        while let Some(bytes) = self.0.get(at / 8..) {
            // Eight bytes at once where there are as many, the first bit highest.
            let (word, width) = match bytes.first_chunk::<8>() {
                Some(b) => (u64::from_be_bytes(*b), 64),
                None => match bytes.first() {
                    Some(b) => (u64::from(*b) << 56, 8),
                    None => break,
                },
            };
            let word = (if on { word } else { !word }) << (at % 8);
            let zeros = word.leading_zeros() as usize;
            if zeros < width - at % 8 {
                return at + zeros;
            }
            at = at / 8 * 8 + width;
        }
        SLOTS
    }

    pub fn any(&self, slot: usize, n: usize) -> bool {
        self.next(slot, true) < slot + n
    }

    pub fn all(&self, slot: usize, n: usize) -> bool {
        self.next(slot, false) >= slot + n
    }

    pub fn free(&self) -> usize {
        let (words, rest) = self.0.as_chunks::<8>();
        let words = words.iter().map(|w| u64::from_ne_bytes(*w).count_zeros());
        let rest = rest.iter().map(|b| b.count_zeros());
        words.chain(rest).map(|n| n as usize).sum()
    }

    pub fn combine(&self, other: &Self, f: impl Fn(u8, u8) -> u8) -> Self {
        let mut out = self.clone();
        for (o, b) in out.0.iter_mut().zip(&other.0) {
            *o = f(*o, *b);
        }
        out
    }

    /// The first run of `n` free slots from `from` on, aligned to `align` slots.
    pub fn find(&self, from: usize, n: usize, align: usize) -> Option<usize> {
        let mut start = from;
        loop {
            start = self.next(start, false).next_multiple_of(align);
            if start + n > SLOTS {
                return None;
            }
            let used = self.next(start, true);
            if used >= start + n {
                return Some(start);
            }
            start = used;
        }
    }

    /// The runs of set bits, ascending: (first slot, slots).
    pub fn runs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, true);
            if start >= SLOTS {
                return None;
            }
            at = self.next(start, false);
            Some((start, at - start))
        })
    }
}

/// The bits that the map pages of a span take themselves.
pub(crate) fn reserved(index: u64) -> Bits {
    let mut bits = Bits::EMPTY;
    for (_, offset) in map_pages(index) {
        bits.set((offset / SLOT) as usize, 512 / SLOT as usize, true);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_respects_use_length_and_alignment() {
        let mut bits = reserved(0);
        assert_eq!(bits.find(0, 1, 1), Some(16));
        bits.set(17, 1, true);
        assert_eq!(bits.find(0, 1, 1), Some(16));
        assert_eq!(bits.find(0, 2, 1), Some(18));
        assert_eq!(bits.find(0, 8, 8), Some(24));
        assert_eq!(bits.find(0, SLOTS - 24, 8), Some(24));
        assert_eq!(bits.find(0, SLOTS - 17, 1), None);
        assert_eq!(bits.find(100, 1, 1), Some(100));
        bits.set(0, SLOTS, true);
        assert_eq!(bits.find(0, 1, 1), None);
        assert_eq!(bits.free(), 0);
    }

    #[test]
    fn all_questions_agree_with_naive_answers() {
        let mut seed = 7u32;
        for round in 0..200usize {
            let mut bits = Bits::EMPTY;
            let mut naive = [false; SLOTS];
            for i in 0..round * 6 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let (at, n, on) = (
                    seed as usize >> 8 & 0xFFF,
                    1 + (seed as usize & 31),
                    i % 4 != 0,
                );
                bits.set(at, n, on);
                naive.iter_mut().skip(at).take(n).for_each(|b| *b = on);
            }
            assert!((0..SLOTS).all(|s| bits.get(s) == naive[s]));
            assert_eq!(bits.free(), naive.iter().filter(|b| !**b).count());
            for (n, align) in [(1, 1), (3, 1), (8, 8), (40, 1), (128, 1)] {
                for from in [0, 1, 777, SLOTS - 1, SLOTS] {
                    let free = |s: &usize| s + n <= SLOTS && !naive[*s..s + n].contains(&true);
                    let first = (from.next_multiple_of(align)..SLOTS)
                        .step_by(align)
                        .find(free);
                    assert_eq!(
                        bits.find(from, n, align),
                        first,
                        "{n} slots in round {round}"
                    );
                }
                let at = seed as usize % (SLOTS - n);
                assert_eq!(bits.any(at, n), naive[at..at + n].contains(&true));
                assert_eq!(bits.all(at, n), !naive[at..at + n].contains(&false));
            }
            let mut again = Bits::EMPTY;
            let mut last = None;
            for (at, n) in bits.runs() {
                assert!(n > 0 && last.is_none_or(|l| l < at), "runs do not touch");
                last = Some(at + n);
                again.set(at, n, true);
            }
            assert!(again == bits);
        }
    }
}
