//! Applying a package to a container: once (R7), whole (R8), and re-read afterwards (R5).
//!
//! The order is what makes it safe:
//!
//! 1. the container is opened beneath the root and taken for ourselves, or the work is deferred;
//! 2. a redo sidecar found beside it is finished, or set aside if it fits nothing;
//! 3. a repeated request gets its first answer; a wrong base or a used sequence is refused;
//! 4. the engine works out the writes; the result is simulated and held against what the client
//!    expects, before anything is written;
//! 5. room for growth is reserved, the record made pending, the redo log made durable;
//! 6. the writes go in, phase by phase; the file is read again from the disk; its leaves and its
//!    inventory must be the simulated ones;
//! 7. the record becomes done, the redo log goes, the answer is sent.
//!
//! A cut after any step leaves a valid container and enough to finish or to refuse.

use std::io;
use std::sync::Arc;

use storage::{Leaves, Loaded, Outcome, ReadAt, RedoError, RedoLog, WriteAt, WriteSet};
use sync::wire::{self, ApplyAnswer, ApplyRequest, ContainerAnswer, ErrorCode, InventoryAnswer};

use crate::container::{Known, to_wire};
use crate::engine::Engine;
use crate::error::Fault;
use crate::records::{Mark, Record, Records};
use crate::site::{Access, Container, Site};

/// Told of each step of an apply, by the step's name.
pub type StepHook = Arc<dyn Fn(&'static str) + Send + Sync>;

/// Does the work on containers. All calls block; the caller keeps them to one at a time for each
/// container, and passes what is known of it in `slot`.
pub struct Worker {
    /// Where containers are.
    pub site: Box<dyn Site>,
    /// What was applied.
    pub records: Records,
    /// Understands containers.
    pub engine: Arc<dyn Engine>,
    /// Told of each step.
    pub steps: Option<StepHook>,
    /// The most bytes that a package may unpack to.
    pub max_package: u64,
}

impl Worker {
    /// The state of a container.
    pub fn container(
        &self,
        path: &str,
        slot: &mut Option<Known>,
    ) -> Result<ContainerAnswer, Fault> {
        let container = self.open_to_read(path, slot)?;
        let known = Known::refresh(slot, path, &*container)?;
        let inventory = known.inventory(path, &*container, &*self.engine)?;
        Ok(ContainerAnswer {
            generation: known.generation(),
            stamp: known.stamp,
            inventory_digest: inventory.digest,
            sequences: self
                .records
                .sequences(path)
                .map_err(|e| Fault::database(&e))?,
        })
    }

    /// The inventory of a container.
    pub fn inventory(
        &self,
        path: &str,
        slot: &mut Option<Known>,
    ) -> Result<InventoryAnswer, Fault> {
        let container = self.open_to_read(path, slot)?;
        let known = Known::refresh(slot, path, &*container)?;
        let inventory = known.inventory(path, &*container, &*self.engine)?;
        Ok(InventoryAnswer {
            generation: known.generation(),
            digest: inventory.digest,
            rows: wire::pack(&inventory.rows).map_err(|e| Fault::io(path, &e))?,
        })
    }

    /// Finishes what a crash left of a change of this container, if anything.
    pub fn recover(&self, path: &str, slot: &mut Option<Known>) -> Result<(), Fault> {
        let container = self.site.open(path, Access::Alone)?;
        if container.has_log().map_err(|e| Fault::io(path, &e))? {
            container.take()?;
            *slot = None;
            self.settle_log(path, &*container)?;
        }
        Ok(())
    }

    /// Applies a package.
    pub fn apply(
        &self,
        request: &ApplyRequest,
        slot: &mut Option<Known>,
    ) -> Result<ApplyAnswer, Fault> {
        let path = request.container.as_str();
        let database = |e| Fault::database(&e);
        let package = self.unpack(request)?;
        let mark = Mark {
            client: request.client,
            container: request.container.clone(),
            sequence: request.sequence,
        };
        // An answer that was given once needs neither the file nor its user's leave.
        let first = self.records.get(&mark).map_err(database)?;
        if let Some(r) = first.filter(|r| r.done && r.answer.digest == request.digest) {
            return Ok(ApplyAnswer {
                repeated: true,
                ..r.answer
            });
        }

        let container = self.site.open(path, Access::Alone)?;
        container.take()?;
        if !container.is_current().map_err(|e| Fault::io(path, &e))? {
            return Err(Fault::in_use(path));
        }
        if container.has_log().map_err(|e| Fault::io(path, &e))? {
            *slot = None;
            self.settle_log(path, &*container)?;
        }
        let generation = Known::refresh(slot, path, &*container)?.generation();
        if let Some(answer) = self.earlier(&mark, request, generation)? {
            return Ok(answer);
        }
        if let Some(base) = request.base.filter(|base| *base != generation) {
            let message = format!(
                "{path} does not hold the {} bytes that the package was made for",
                base.len
            );
            return Err(Fault::new(ErrorCode::WrongBase, message).with_generation(generation));
        }
        let result = self.change(request, &package, &mark, &*container, slot);
        if result.is_err() {
            // Whatever was written or not: read again before anything is trusted.
            *slot = None;
        }
        result.map_err(|fault| match fault.code {
            ErrorCode::WrongBase => fault.with_generation(generation),
            _ => fault,
        })
    }

    fn unpack(&self, request: &ApplyRequest) -> Result<Vec<u8>, Fault> {
        let package = wire::unpack(&request.package, self.max_package).map_err(|e| {
            let code = match e {
                wire::UnpackError::TooLarge(_) => ErrorCode::TooLarge,
                _ => ErrorCode::BadRequest,
            };
            Fault::new(code, format!("the package {e}"))
        })?;
        if *blake3::hash(&package).as_bytes() != request.digest {
            let message = "the package does not have the digest that was sent with it";
            return Err(Fault::new(ErrorCode::BadRequest, message));
        }
        Ok(package)
    }

    /// The answer to a request that was made before, if it got through; refuses a used sequence.
    fn earlier(
        &self,
        mark: &Mark,
        request: &ApplyRequest,
        generation: wire::Generation,
    ) -> Result<Option<ApplyAnswer>, Fault> {
        let database = |e| Fault::database(&e);
        let used = |message: String| {
            Err(Fault::new(ErrorCode::SequenceUsed, message).with_generation(generation))
        };
        match self.records.get(mark).map_err(database)? {
            Some(record) if record.done => {
                return used(format!("sequence {} was another package", mark.sequence));
            }
            Some(record)
                if record.answer.digest == request.digest
                    && record.answer.generation == generation =>
            {
                self.records
                    .put(
                        mark,
                        &Record {
                            done: true,
                            answer: record.answer.clone(),
                        },
                    )
                    .map_err(database)?;
                return Ok(Some(ApplyAnswer {
                    repeated: true,
                    ..record.answer
                }));
            }
            // Pending, and it never got through: nobody was told anything, so it is free.
            Some(_) | None => {}
        }
        match self.records.last(mark).map_err(database)? {
            Some(last) if last >= mark.sequence => used(format!(
                "sequence {} is not above the last one, {last}",
                mark.sequence
            )),
            _ => Ok(None),
        }
    }

    fn change(
        &self,
        request: &ApplyRequest,
        package: &[u8],
        mark: &Mark,
        container: &dyn Container,
        slot: &mut Option<Known>,
    ) -> Result<ApplyAnswer, Fault> {
        let path = request.container.as_str();
        let io = |e: io::Error| Fault::io(path, &e);
        let Some(known) = slot.as_mut() else {
            return Err(Fault::in_use(path));
        };
        let storage = container.storage();
        let rows = known.inventory(path, container, &*self.engine)?;
        let plan = self
            .engine
            .apply(to_read(&storage), package)
            .map_err(|e| Fault::engine(path, &e))?;
        let writes = plan.write_set;
        if writes.base_len != known.stamp.len || writes.validate().is_err() {
            let message = format!("{path}: the engine's writes do not fit the file");
            return Err(Fault::new(ErrorCode::Internal, message));
        }

        let growth = writes.target_len.saturating_sub(writes.base_len);
        if growth > container.available().map_err(io)? {
            return Err(io(io::ErrorKind::StorageFull.into()));
        }

        let changed = writes.covered();
        let preview = Arc::new(writes.preview(Arc::clone(&storage)).map_err(io)?);
        let mut leaves = known.leaves.clone();
        leaves.rehash(&*preview, &changed).map_err(io)?;
        let simulated = self
            .engine
            .inventory(preview, Some(&rows.rows))
            .map_err(|e| Fault::engine(path, &e))?;
        // Remapped NIDs give another digest; the client works it out from the map it gets.
        if plan.nid_map.is_empty() && simulated.digest != request.expected {
            let message = format!("{path} would not hold what is expected after this change");
            return Err(
                Fault::new(ErrorCode::NotExpected, message).with_generation(known.generation())
            );
        }
        let answer = ApplyAnswer {
            sequence: request.sequence,
            digest: request.digest,
            inventory_digest: simulated.digest,
            generation: to_wire(leaves.generation()),
            nid_map: plan.nid_map,
            bytes_written: writes.payload(),
            repeated: false,
        };
        if !writes.is_empty() {
            container.reserve(writes.base_len, growth).map_err(io)?;
            self.records
                .put(
                    mark,
                    &Record {
                        done: false,
                        answer: answer.clone(),
                    },
                )
                .map_err(|e| Fault::database(&e))?;
            self.commit(mark, container, &writes, &known.leaves)?;

            container.forget_cached(&changed);
            let mut reread = known.leaves.clone();
            reread.rehash(&*storage, &changed).map_err(io)?;
            let found = self
                .engine
                .inventory(to_read(&storage), Some(&rows.rows))
                .map_err(|e| not_verified(path, &e.to_string()))?;
            if reread != leaves {
                return Err(not_verified(path, "other bytes"));
            }
            if found.digest != simulated.digest {
                return Err(not_verified(path, "another inventory"));
            }
            self.step("verified");
            container.settled(&reread).map_err(io)?;
            *slot = Some(Known::of(container, reread, Arc::new(found)).map_err(io)?);
        }
        self.records
            .put(
                mark,
                &Record {
                    done: true,
                    answer: answer.clone(),
                },
            )
            .map_err(|e| Fault::database(&e))?;
        self.step("recorded");
        if !writes.is_empty() {
            // The change is done and recorded: a sidecar that will not go is found again later.
            if let Err(error) = container.drop_log() {
                tracing::warn!(container = path, %error, "the redo sidecar was not removed");
            }
            self.step("dropped");
        }
        tracing::info!(
            container = path,
            sequence = request.sequence,
            bytes_written = answer.bytes_written,
            "applied"
        );
        Ok(answer)
    }

    /// Makes the redo log durable, then the writes.
    fn commit(
        &self,
        mark: &Mark,
        container: &dyn Container,
        writes: &WriteSet,
        leaves: &Leaves,
    ) -> Result<(), Fault> {
        let path = mark.container.as_str();
        if !container.undisturbed() {
            return Err(Fault::in_use(path));
        }
        let meta = mark.encode().map_err(|e| Fault::database(&e))?;
        container
            .write_log(writes, leaves, &meta)
            .map_err(|e| Fault::redo(path, &e))?;
        self.step("logged");
        writes.commit(&*container.storage()).map_err(|e| {
            tracing::error!(container = path, error = %e, "a change was cut short; it is finished later");
            Fault::io(path, &e)
        })?;
        self.step("committed");
        Ok(())
    }

    /// Finishes the change whose redo log lies beside the container; sets a log aside that fits
    /// no state of it. The container is ours alone.
    fn settle_log(&self, path: &str, container: &dyn Container) -> Result<(), Fault> {
        let log = match container.load_log() {
            Ok(Loaded::Complete(log)) => log,
            // It was never durable, so nothing of the container was touched.
            Ok(Loaded::Absent | Loaded::Torn) => {
                return container.drop_log().map_err(|e| Fault::redo(path, &e));
            }
            // A newer agent's: it will know what to do.
            Err(error @ RedoError::Version(_)) => return Err(Fault::redo(path, &error)),
            Err(RedoError::Io { source, .. }) => return Err(Fault::io(path, &source)),
            Err(error) => return set_aside(path, container, &error.to_string()),
        };
        let io = |e: io::Error| Fault::io(path, &e);
        match log.recover(&*container.storage()).map_err(io)? {
            Outcome::Finished | Outcome::AlreadyDone => {
                let now = container.leaves_after(&log).map_err(io)?;
                container.settled(&now).map_err(io)?;
                if now.generation() == log.target() {
                    self.promote(&log)?;
                }
                container.drop_log().map_err(|e| Fault::redo(path, &e))?;
                tracing::info!(container = path, "finished a change that was cut short");
                Ok(())
            }
            Outcome::Foreign { leaf } => set_aside(
                path,
                container,
                &format!("somebody else changed the file (leaf {leaf})"),
            ),
        }
    }

    /// The change of `log` is in the container: its record becomes done.
    fn promote(&self, log: &RedoLog) -> Result<(), Fault> {
        let Some(mark) = Mark::decode(log.meta()) else {
            return Ok(());
        };
        let record = self.records.get(&mark).map_err(|e| Fault::database(&e))?;
        match record {
            Some(Record {
                done: false,
                answer,
            }) if answer.generation == to_wire(log.target()) => self
                .records
                .put(&mark, &Record { done: true, answer })
                .map_err(|e| Fault::database(&e)),
            _ => Ok(()),
        }
    }

    fn open_to_read(
        &self,
        path: &str,
        slot: &mut Option<Known>,
    ) -> Result<Box<dyn Container>, Fault> {
        let container = self.site.open(path, Access::Read)?;
        if container.has_log().map_err(|e| Fault::io(path, &e))? {
            // Our own open file would keep us from having it alone.
            drop(container);
            self.recover(path, slot)?;
            return self.site.open(path, Access::Read);
        }
        Ok(container)
    }

    fn step(&self, name: &'static str) {
        if let Some(hook) = &self.steps {
            hook(name);
        }
    }
}

fn to_read(storage: &Arc<dyn WriteAt>) -> Arc<dyn ReadAt> {
    Arc::clone(storage) as Arc<dyn ReadAt>
}

fn set_aside(path: &str, container: &dyn Container, reason: &str) -> Result<(), Fault> {
    let name = container.set_log_aside().map_err(|e| Fault::io(path, &e))?;
    tracing::error!(
        container = path,
        reason,
        name,
        "a redo log that fits no state of the file was set aside; clients merge again"
    );
    Ok(())
}

fn not_verified(path: &str, detail: &str) -> Fault {
    tracing::error!(
        container = path,
        detail,
        "what was re-read is not what was written"
    );
    let message = format!("{path} does not read back as it was written ({detail})");
    Fault::new(ErrorCode::NotVerified, message)
}
