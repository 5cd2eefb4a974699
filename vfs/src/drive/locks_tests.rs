use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::share::{Attr, ShareFile};

/// A file of a share: locks as Windows keeps them, for the handle under test (`true`) and others.
#[derive(Default)]
struct Server(Mutex<Vec<(bool, Range<u64>, bool)>>);

impl Server {
    fn grant(&self, ours: bool, range: Range<u64>, exclusive: bool) -> bool {
        let mut all = lock(&self.0);
        let blocked = all
            .iter()
            .any(|(by, r, x)| overlap(r, &range) && (exclusive || (*x && *by != ours)));
        if !blocked {
            all.push((ours, range, exclusive));
        }
        !blocked
    }

    fn release(&self, ours: bool, range: &Range<u64>) -> bool {
        let mut all = lock(&self.0);
        let at = all.iter().position(|(by, r, _)| *by == ours && r == range);
        at.map(|at| all.remove(at)).is_some()
    }

    /// What we hold at a byte: nothing, shared, exclusive.
    fn at(&self, byte: u64) -> u8 {
        let all = lock(&self.0);
        let here = all.iter().filter(|(by, r, _)| *by && r.contains(&byte));
        here.map(|(_, _, x)| 1 + u8::from(*x)).max().unwrap_or(0)
    }
}

struct File(Arc<Server>);

impl ShareFile for File {
    fn stat(&self) -> io::Result<Attr> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
    fn write_all_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn lock(&self, range: Range<u64>, exclusive: bool) -> io::Result<bool> {
        Ok(self.0.grant(true, range, exclusive))
    }
    fn unlock(&self, range: Range<u64>) -> io::Result<()> {
        match self.0.release(true, &range) {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

const BYTES: u64 = 12;

/// What owners hold at a byte, by the plainest of models.
fn held_at(held: &[HeldLock], byte: u64) -> u8 {
    let here = held.iter().filter(|h| h.range.contains(&byte));
    here.map(|h| 1 + u8::from(h.exclusive)).max().unwrap_or(0)
}

proptest! {
    /// Locks and unlocks of three owners here and of another computer: the share always holds at
    /// least what the programs do, nothing where they hold nothing, and an answer "no" changes nothing.
    #[test]
    fn the_share_holds_what_programs_hold(
        ops in prop::collection::vec(
            (0..4u64, 0..BYTES, 1..6u64, prop::option::of(any::<bool>())), 1..60)
    ) {
        let server = Arc::new(Server::default());
        let file = File(server.clone());
        let mut mirror = Mirror::default();
        let mut held: Vec<HeldLock> = Vec::new();
        for (who, start, len, kind) in ops {
            let range = start..start + len;
            if who == 3 {
                // The other computer.
                match kind {
                    Some(exclusive) => {
                        server.grant(false, range, exclusive);
                    }
                    None => lock(&server.0).retain(|(ours, ..)| *ours),
                }
                continue;
            }
            let new = HeldLock {
                range: range.clone(),
                exclusive: kind.unwrap_or(false),
                owner: LockOwner { id: who, pid: 0 },
                handle: 1,
            };
            let next = after(&held, &new, kind);
            // The table is what the last word of each owner on each byte says.
            for byte in 0..BYTES + 6 {
                let mine = |held: &[HeldLock]| {
                    let mut mine = held.to_vec();
                    mine.retain(|h| h.owner.id == who);
                    held_at(&mine, byte)
                };
                let expected = match range.contains(&byte) {
                    true => kind.map_or(0, |x| 1 + u8::from(x)),
                    false => mine(&held),
                };
                prop_assert_eq!(mine(&next), expected);
            }
            let table = Locks::default();
            lock(&table.held).clone_from(&held);
            if let Some(exclusive) = kind {
                if table.in_the_way(new.owner, &range, exclusive).is_some() {
                    continue;
                }
                let before: Vec<u8> = (0..BYTES + 6).map(|b| server.at(b)).collect();
                if !mirror.cover(&file, &together(&next)).unwrap() {
                    let now: Vec<u8> = (0..BYTES + 6).map(|b| server.at(b)).collect();
                    prop_assert_eq!(before, now);
                    continue;
                }
            }
            held = next;
            mirror.shed(&file, &together(&held));
            for byte in 0..BYTES + 6 {
                let (wanted, there) = (held_at(&held, byte), server.at(byte));
                prop_assert!(there >= wanted, "byte {}: {} of {}", byte, there, wanted);
            }
            let nothing = (0..BYTES + 6).all(|b| held_at(&held, b) == 0);
            prop_assert!(!nothing || lock(&server.0).iter().all(|(ours, ..)| !ours));
        }
        mirror.shed(&file, &[]);
        prop_assert!(lock(&server.0).iter().all(|(ours, ..)| !ours));
    }
}

#[test]
fn a_lock_that_becomes_shared_lets_others_in() {
    let server = Arc::new(Server::default());
    let file = File(server.clone());
    let mut mirror = Mirror::default();
    let piece = |range: Range<u64>, exclusive| Piece { range, exclusive };
    assert!(mirror.cover(&file, &[piece(0..10, true)]).unwrap());
    assert!(!server.grant(false, 3..4, false));
    mirror.shed(&file, &[piece(0..10, false)]);
    assert!(server.grant(false, 3..4, false));
    assert!(!server.grant(false, 3..4, true));
    // And not back while the other reads; ours stays.
    assert!(!mirror.cover(&file, &[piece(0..10, true)]).unwrap());
    assert_eq!(server.at(3), 1);
    mirror.shed(&file, &[piece(8..10, false)]);
    assert!(server.release(false, &(3..4)) && server.grant(false, 0..8, true));
    assert_eq!((server.at(7), server.at(8)), (0, 1));
}
