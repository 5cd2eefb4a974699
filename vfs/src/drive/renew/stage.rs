//! What a renewal keeps beside the cache file until its one step.
//!
//! ```text
//! renew/ID        the leaves that differ, at their places in the new file
//! renew/ID.plan   version | CRC-32 | which file they belong to, what is compared, what differs
//! ```
//!
//! A plan is written after the bytes it speaks of are durable, and replaced in one step. One that says
//! *finished* exists only while nobody else may touch the file: from just before the journal's record of
//! the step until its bytes are in the cache file. So finding one at the opening of a drive means that
//! nothing was done to the file since, and laying it over the file again does no harm.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bincode::{Decode, Encode};
use storage::{RangeSet, ReadAt, WriteAt};

use crate::cache::{Ranges, from_ranges, to_ranges};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::journal::record::codec;
use crate::share::Stamp;

const DIR: &str = "renew";
const VERSION: u8 = 1;
/// Bound on a plan read back, in bytes.
const MAX_PLAN: u64 = 64 << 20;
/// Bytes laid over the file at a time.
const STEP: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct Plan {
    /// The share's file.
    stamp: Stamp,
    /// The cache file when this was begun: its life, and writes ever.
    lineage: u64,
    writes: u64,
    compared: Ranges,
    changed: Ranges,
    finished: bool,
}

pub(crate) struct Stage {
    disk: Arc<dyn Disk>,
    id: u64,
    bytes: Arc<dyn WriteAt>,
    stamp: Stamp,
    lineage: u64,
    writes: u64,
    compared: RangeSet,
    changed: RangeSet,
    finished: bool,
}

fn bytes_path(id: u64) -> String {
    format!("{DIR}/{id:016x}")
}

fn plan_path(id: u64) -> String {
    format!("{DIR}/{id:016x}.plan")
}

fn fail(e: io::Error) -> Error {
    Error::from_io("keeping a renewal's progress", e)
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes what there is of a renewal, the plan first and durably.
pub(crate) fn clear(disk: &Arc<dyn Disk>, id: u64) -> Result<()> {
    gone(disk.remove(&plan_path(id)))
        .and_then(|()| disk.sync_dir(DIR))
        .and_then(|()| gone(disk.remove(&bytes_path(id))))
        .map_err(fail)
}

/// Renewals that were broken off, by file; an error where what is left cannot be read.
pub(crate) fn left_behind(disk: &Arc<dyn Disk>) -> Result<Vec<(u64, Result<Stage>)>> {
    let names = match disk.list(DIR) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(fail(e)),
    };
    let plans = names.iter().filter_map(|n| n.strip_suffix(".plan"));
    let ids = plans.filter_map(|n| u64::from_str_radix(n, 16).ok());
    Ok(ids.map(|id| (id, Stage::load(disk, id))).collect())
}

impl Stage {
    /// Goes on with what an earlier attempt left, if both files are what they were; else begins anew.
    pub fn begin(
        disk: &Arc<dyn Disk>,
        id: u64,
        stamp: Stamp,
        lineage: u64,
        writes: u64,
    ) -> Result<Self> {
        disk.mkdir(DIR)
            .and_then(|()| disk.sync_dir(""))
            .map_err(fail)?;
        if let Ok(stage) = Self::load(disk, id)
            && !stage.finished
            && (stage.stamp, stage.lineage, stage.writes) == (stamp, lineage, writes)
        {
            return Ok(stage);
        }
        clear(disk, id)?;
        let bytes = disk.create(&bytes_path(id), 0).map_err(fail)?;
        Ok(Self {
            disk: disk.clone(),
            id,
            bytes,
            stamp,
            lineage,
            writes,
            compared: RangeSet::new(),
            changed: RangeSet::new(),
            finished: false,
        })
    }

    fn load(disk: &Arc<dyn Disk>, id: u64) -> Result<Self> {
        let name = plan_path(id);
        let damaged = |what: &str| Error::Damaged {
            file: name.clone(),
            offset: 0,
            what: what.to_owned(),
        };
        let stored = disk
            .read(&name, MAX_PLAN)
            .map_err(fail)?
            .ok_or_else(|| Error::NotFound(name.clone()))?;
        let (head, body) = stored
            .split_first_chunk::<5>()
            .ok_or_else(|| damaged("too short"))?;
        let (version, crc) = head.split_at(1);
        if version != [VERSION] || crc != crc32fast::hash(body).to_le_bytes() {
            return Err(damaged("version or checksum does not match"));
        }
        let (plan, used): (Plan, usize) =
            bincode::decode_from_slice(body, codec()).map_err(|e| damaged(&e.to_string()))?;
        if used != body.len() {
            return Err(damaged("trailing bytes"));
        }
        Ok(Self {
            disk: disk.clone(),
            id,
            bytes: disk.open(&bytes_path(id)).map_err(fail)?,
            stamp: plan.stamp,
            lineage: plan.lineage,
            writes: plan.writes,
            compared: from_ranges(&plan.compared),
            changed: from_ranges(&plan.changed),
            finished: plan.finished,
        })
    }

    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    pub fn lineage(&self) -> u64 {
        self.lineage
    }

    pub fn writes(&self) -> u64 {
        self.writes
    }

    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// What is still to be compared.
    pub fn left(&self) -> Vec<Range<u64>> {
        self.compared.gaps(0..self.stamp.size)
    }

    pub fn compared(&mut self, range: Range<u64>) {
        self.compared.insert(range);
    }

    /// What differs.
    pub fn changed(&self) -> &RangeSet {
        &self.changed
    }

    /// What was compared and does not differ.
    pub fn same(&self) -> RangeSet {
        let mut same = self.compared.clone();
        same.subtract(&self.changed);
        same
    }

    /// The leaves that differ, at their places.
    pub fn reader(&self) -> Arc<dyn ReadAt> {
        Arc::new(Staged(self.bytes.clone()))
    }

    pub fn put(&mut self, range: Range<u64>, bytes: &[u8]) -> Result<()> {
        self.bytes.write_all_at(range.start, bytes).map_err(fail)?;
        self.changed.insert(range);
        Ok(())
    }

    /// Keeps what was done so far.
    pub fn save(&mut self) -> Result<()> {
        self.bytes
            .sync()
            .and_then(|()| self.disk.sync_dir(DIR))
            .map_err(fail)?;
        let plan = Plan {
            stamp: self.stamp,
            lineage: self.lineage,
            writes: self.writes,
            compared: to_ranges(&self.compared),
            changed: to_ranges(&self.changed),
            finished: self.finished,
        };
        let mut body = Vec::new();
        // Encoding into a Vec cannot fail: no type here refuses, and the limit is far.
        let _ = bincode::encode_into_std_write(&plan, &mut body, codec());
        let mut stored = vec![VERSION];
        stored.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        stored.extend_from_slice(&body);
        self.disk
            .replace(&plan_path(self.id), &stored)
            .map_err(fail)
    }

    /// Everything is compared, and nobody else may touch the file from here on.
    pub fn finish(&mut self) -> Result<()> {
        self.finished = true;
        self.save()
    }

    /// Puts the leaves that differ into the file, durably. Done twice it does no harm.
    pub fn lay_over(&self, data: &dyn WriteAt) -> Result<()> {
        let run = || -> io::Result<()> {
            if data.len()? != self.stamp.size {
                data.set_len(self.stamp.size)?;
            }
            let mut buf = Vec::new();
            for range in self.changed.iter() {
                let mut at = range.start;
                while at < range.end {
                    buf.resize((range.end - at).min(STEP) as usize, 0);
                    self.bytes.read_exact_at(at, &mut buf)?;
                    data.write_all_at(at, &buf)?;
                    at += buf.len() as u64;
                }
            }
            data.sync()
        };
        run().map_err(|e| Error::from_io("writing a cache file", e))
    }

    /// Removes it, durably.
    pub fn remove(&self) -> Result<()> {
        clear(&self.disk, self.id)
    }

    /// Gives it up: the share's file is another by now.
    pub fn discard(&self) {
        if let Err(error) = self.remove() {
            tracing::debug!(%error, "a renewal that is of no use any more stays for now");
        }
    }
}

struct Staged(Arc<dyn WriteAt>);

impl ReadAt for Staged {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buf)
    }
}
