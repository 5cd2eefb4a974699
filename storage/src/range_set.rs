//! A set of `u64` positions, kept as few disjoint ranges: what was written, what is cached, what
//! must be read again.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// A set of disjoint, half-open, non-adjacent ranges of `u64`, in ascending order.
///
/// Touching ranges merge, so equal sets have equal representations. An empty or reversed range
/// (`end <= start`) holds nothing and is ignored wherever it is given. The position `u64::MAX`
/// cannot be a member (no half-open range reaches it); no file is that long.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct RangeSet {
    /// start -> end
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            ranges: BTreeMap::new(),
        }
    }

    /// Adds all of `range`.
    pub fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        // Absorb every range that overlaps or touches; the last by start first.
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.ranges.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.ranges.insert(start, end);
    }

    /// Takes all of `range` out.
    pub fn remove(&mut self, range: Range<u64>) {
        let Range { start, end } = range;
        if start >= end {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..end).next_back() {
            if e <= start {
                break;
            }
            self.ranges.remove(&s);
            if e > end {
                self.ranges.insert(end, e);
            }
            if s < start {
                self.ranges.insert(s, start);
            }
        }
    }

    /// Takes out everything at or past `len`.
    pub fn truncate(&mut self, len: u64) {
        self.remove(len..u64::MAX);
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many disjoint ranges there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// How many positions (bytes) are in the set.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ranges.iter().map(|(s, e)| e - s).sum()
    }

    /// From the first member to one past the last; `None` if empty.
    #[must_use]
    pub fn span(&self) -> Option<Range<u64>> {
        let (&start, _) = self.ranges.first_key_value()?;
        let (_, &end) = self.ranges.last_key_value()?;
        Some(start..end)
    }

    /// Whether `at` is a member.
    #[must_use]
    pub fn contains(&self, at: u64) -> bool {
        self.ranges
            .range(..=at)
            .next_back()
            .is_some_and(|(_, &e)| e > at)
    }

    /// Whether all of `range` is in the set (true for an empty range).
    #[must_use]
    pub fn contains_range(&self, range: Range<u64>) -> bool {
        range.start >= range.end
            || self
                .ranges
                .range(..=range.start)
                .next_back()
                .is_some_and(|(_, &e)| e >= range.end)
    }

    /// Whether any of `range` is in the set.
    #[must_use]
    pub fn intersects(&self, range: Range<u64>) -> bool {
        self.within(range).next().is_some()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&s, &e)| s..e)
    }

    /// The members inside `window`: the ranges cut to it, ascending.
    pub fn within(&self, window: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        // Only the last range that starts at or before the window can reach into it.
        let from = self
            .ranges
            .range(..=window.start)
            .next_back()
            .map_or(window.start, |(&s, _)| s)
            .min(window.end);
        let until = window.end.max(from);
        self.ranges
            .range(from..until)
            .map(move |(&s, &e)| s.max(window.start)..e.min(window.end))
            .filter(|r| r.start < r.end)
    }

    /// What is *not* in the set inside `window`, ascending.
    #[must_use]
    pub fn gaps(&self, window: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = window.start;
        for r in self.within(window.clone()) {
            if at < r.start {
                gaps.push(at..r.start);
            }
            at = r.end;
        }
        if at < window.end {
            gaps.push(at..window.end);
        }
        gaps
    }

    /// Adds all of `other`.
    pub fn union_with(&mut self, other: &RangeSet) {
        self.extend(other.iter());
    }

    /// Takes all of `other` out.
    pub fn subtract(&mut self, other: &RangeSet) {
        for r in other.iter() {
            self.remove(r);
        }
    }

    /// What is in both sets.
    #[must_use]
    pub fn intersection(&self, other: &RangeSet) -> RangeSet {
        let (few, many) = if self.count() <= other.count() {
            (self, other)
        } else {
            (other, self)
        };
        few.iter().flat_map(|r| many.within(r)).collect()
    }

    /// The set widened so that each range starts and ends on a multiple of `unit` (a `unit` of 0
    /// counts as 1).
    #[must_use]
    pub fn aligned(&self, unit: u64) -> RangeSet {
        let unit = unit.max(1);
        self.iter()
            .map(|r| {
                r.start - r.start % unit..r.end.checked_next_multiple_of(unit).unwrap_or(r.end)
            })
            .collect()
    }
}

impl fmt::Debug for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Extend<Range<u64>> for RangeSet {
    fn extend<I: IntoIterator<Item = Range<u64>>>(&mut self, ranges: I) {
        for r in ranges {
            self.insert(r);
        }
    }
}

impl FromIterator<Range<u64>> for RangeSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::new();
        set.extend(ranges);
        set
    }
}

impl From<Range<u64>> for RangeSet {
    fn from(range: Range<u64>) -> Self {
        std::iter::once(range).collect()
    }
}
