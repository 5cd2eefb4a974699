//! What was applied: one durable record for each (client, container, sequence) (DESIGN R7).
//!
//! A record is *pending* from before the first byte of the container is touched, and *done* once
//! the result was re-read. A pending record tells, together with the container's bytes, whether a
//! change that a crash cut short got through: then, and only then, it becomes done.
//!
//! The database can be lost (it is set aside if damaged). A repeated request then meets a
//! container whose generation is no longer its base, and is refused as such: never applied twice.

use std::path::Path;

use bincode::{Decode, Encode};
use sync::kv::{KvError, KvStore, Write};
use sync::record;
use sync::wire::{ApplyAnswer, ClientId};

/// Records kept for each client and container; a client repeats only its last request.
const KEPT: usize = 32;
/// Version of [`Mark`] in redo logs.
const MARK_VERSION: u8 = 1;
const MARK_LIMIT: usize = 8 << 10;

/// Durable records of what was applied.
#[derive(Debug)]
pub struct Records {
    store: KvStore,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Record {
    /// Whether the result was re-read.
    pub done: bool,
    /// What is, or will be, answered.
    pub answer: ApplyAnswer,
}

/// Names a record inside a redo log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Mark {
    /// Who asked.
    pub client: ClientId,
    /// For which container.
    pub container: String,
    /// The sequence.
    pub sequence: u64,
}

impl Mark {
    /// The bytes that stand in the redo log.
    pub fn encode(&self) -> Result<Vec<u8>, KvError> {
        Ok(record::encode(MARK_VERSION, self)?)
    }

    /// Reads the bytes of a redo log; `None` if they are not a mark.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        record::decode::<Self, MARK_LIMIT>(MARK_VERSION, bytes).ok()
    }

    fn key(&self) -> Vec<u8> {
        let mut key = prefix(&self.container);
        key.extend_from_slice(&self.client);
        key.extend_from_slice(&self.sequence.to_be_bytes());
        key
    }
}

impl Records {
    /// Opens the database in `dir`.
    pub fn open(dir: &Path) -> Result<Self, KvError> {
        let store = KvStore::open(dir)?;
        Ok(Self { store })
    }

    /// The record of `mark`.
    pub fn get(&self, mark: &Mark) -> Result<Option<Record>, KvError> {
        self.store.get(&mark.key())
    }

    /// Stores a record, durably; old ones of that client and container go.
    pub fn put(&self, mark: &Mark, record: &Record) -> Result<(), KvError> {
        let mut writes = vec![Write::put(mark.key(), record)?];
        if record.done {
            let mut of_client = prefix(&mark.container);
            of_client.extend_from_slice(&mark.client);
            let keys = self
                .store
                .scan::<Record>(&of_client)
                .map(|item| item.map(|(key, _)| key))
                .collect::<Result<Vec<_>, _>>()?;
            let surplus = (keys.len() + 1).saturating_sub(KEPT);
            let own = mark.key();
            writes.extend(
                keys.into_iter()
                    .filter(|k| *k < own)
                    .take(surplus)
                    .map(Write::delete),
            );
        }
        self.store.commit(writes)
    }

    /// Per client, the last sequence that was applied to `container`.
    pub fn sequences(&self, container: &str) -> Result<Vec<(ClientId, u64)>, KvError> {
        let prefix = prefix(container);
        let mut last: Vec<(ClientId, u64)> = Vec::new();
        for item in self.store.scan::<Record>(&prefix) {
            let (key, record) = item?;
            let Some((client, rest)) = key
                .get(prefix.len()..)
                .and_then(|k| k.split_first_chunk::<16>())
            else {
                continue;
            };
            let Ok(sequence) = <[u8; 8]>::try_from(rest).map(u64::from_be_bytes) else {
                continue;
            };
            if !record.done {
                continue;
            }
            // Keys come in order: of one client, the last seen is the greatest.
            match last.last_mut().filter(|(c, _)| c == client) {
                Some((_, s)) => *s = sequence,
                None => last.push((*client, sequence)),
            }
        }
        Ok(last)
    }

    /// The last sequence of one client that was applied to `container`.
    pub fn last(&self, mark: &Mark) -> Result<Option<u64>, KvError> {
        let all = self.sequences(&mark.container)?;
        Ok(all
            .into_iter()
            .find(|(client, _)| *client == mark.client)
            .map(|(_, s)| s))
    }
}

/// Paths are of any length: their hash is the beginning of the key.
fn prefix(container: &str) -> Vec<u8> {
    let hash = blake3::hash(container.as_bytes());
    hash.as_bytes()
        .first_chunk::<16>()
        .map_or_else(Vec::new, |b| b.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sync::wire::Generation;

    fn record(sequence: u64, done: bool) -> Record {
        let answer = ApplyAnswer {
            sequence,
            digest: [1; 32],
            inventory_digest: [2; 32],
            generation: Generation {
                len: 1,
                root: [3; 32],
            },
            nid_map: vec![(1, 2)],
            bytes_written: 4,
            repeated: false,
        };
        Record { done, answer }
    }

    fn mark(client: u8, container: &str, sequence: u64) -> Mark {
        Mark {
            client: [client; 16],
            container: container.to_owned(),
            sequence,
        }
    }

    #[test]
    fn last_sequences_by_client_and_container() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        records.put(&mark(1, "a", 5), &record(5, true)).unwrap();
        records.put(&mark(1, "a", 300), &record(300, true)).unwrap();
        records
            .put(&mark(1, "a", 301), &record(301, false))
            .unwrap();
        records.put(&mark(2, "a", 7), &record(7, true)).unwrap();
        records.put(&mark(1, "b", 9), &record(9, true)).unwrap();
        assert_eq!(
            records.sequences("a").unwrap(),
            [([1; 16], 300), ([2; 16], 7)]
        );
        assert_eq!(records.last(&mark(1, "a", 0)).unwrap(), Some(300));
        assert_eq!(records.last(&mark(3, "a", 0)).unwrap(), None);
        assert_eq!(
            records.get(&mark(1, "a", 301)).unwrap(),
            Some(record(301, false))
        );
    }

    #[test]
    fn only_the_latest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        for n in 1..=40 {
            records.put(&mark(1, "a", n), &record(n, true)).unwrap();
            assert!(records.get(&mark(1, "a", n)).unwrap().is_some());
        }
        let kept = (1..=40).filter(|n| records.get(&mark(1, "a", *n)).unwrap().is_some());
        assert_eq!(kept.collect::<Vec<_>>(), (9..=40).collect::<Vec<_>>());
    }
}
