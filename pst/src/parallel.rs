//! The same work for many items, on a few threads, with an answer that does not depend on them.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::{PstError, Result};

/// The most threads: beyond them the reading of one file is what is waited for.
const THREADS: usize = 4;
/// Items that a thread takes at once.
const TAKEN: usize = 32;

/// `work` for each item, in the order of the items.
///
/// # Errors
/// The error of the first item, in their order, that fails.
pub(crate) fn map<T: Sync, R: Send>(
    items: &[T],
    work: &(dyn Fn(&T) -> Result<R> + Sync),
) -> Result<Vec<R>> {
    map_with(items, &|| (), &|(), item| work(item))
}

/// As [`map`], with something that a thread makes for itself now and then, and keeps from one item to
/// the next ones.
///
/// # Errors
/// As [`map`].
pub(crate) fn map_with<T: Sync, R: Send, S>(
    items: &[T],
    make: &(dyn Fn() -> S + Sync),
    work: &(dyn Fn(&mut S, &T) -> Result<R> + Sync),
) -> Result<Vec<R>> {
    let threads = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(THREADS)
        .min(items.len() / TAKEN);
    if threads < 2 {
        let mut own = make();
        return items.iter().map(|item| work(&mut own, item)).collect();
    }
    // Pieces are taken in order, and a piece that was taken is finished up to its first failure:
    // so the first failure of all is among those that were met.
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let done: Mutex<Vec<(usize, Result<Vec<R>>)>> = Mutex::default();
    let run = || {
        let mut own = make();
        while !failed.load(Ordering::Relaxed) {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            let start = piece.saturating_mul(TAKEN);
            let Some(rest) = items.get(start..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            let piece_items = rest.iter().take(TAKEN);
            let result: Result<Vec<R>> = piece_items.map(|item| work(&mut own, item)).collect();
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            done.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((piece, result));
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Where no thread can be had, the others do its work.
            let _ = thread::Builder::new().spawn_scoped(scope, run);
        }
        run();
    });
    let mut pieces = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    pieces.sort_by_key(|(piece, _)| *piece);
    let mut out = Vec::with_capacity(items.len());
    for (_, result) in pieces {
        out.extend(result?);
    }
    if out.len() != items.len() {
        return Err(PstError::Refused(
            "a thread ended before its work was done".into(),
        ));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_items_and_the_error_that_of_the_first() {
        let items: Vec<u64> = (0..10_000).collect();
        let squares = map(&items, &|n| Ok(n * n)).unwrap();
        assert_eq!(squares, items.iter().map(|n| n * n).collect::<Vec<_>>());
        for bad in [0, 31, 32, 5_000, 9_999] {
            let fail = |n: &u64| {
                if *n >= bad {
                    Err(PstError::Refused(n.to_string()))
                } else {
                    Ok(*n)
                }
            };
            let error = map(&items, &fail).unwrap_err().to_string();
            assert!(error.contains(&bad.to_string()), "{error} for {bad}");
        }
        assert!(map::<u64, u64>(&[], &|n| Ok(*n)).unwrap().is_empty());
    }
}
