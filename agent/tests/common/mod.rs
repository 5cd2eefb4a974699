//! A toy container, an engine for it, and an agent with its client over real TLS.
//!
//! A toy container is a 64-byte header ("TOYBOX" and the number of changes) and 64-byte slots. A
//! package is a list of (slot, byte): fill that slot with that byte. Slots past the end grow it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::{Agent, AgentConfig, Applied, Engine, EngineError, InventoryAnswer};
use storage::{Phase, ReadAt, WriteSet};
use sync::client::{AgentClient, Apply, ClientError, Sent, Timeouts, load_invitation};
use sync::wire::{ErrorCode, Generation, Invitation};

pub const SLOT: usize = 64;
pub const MAGIC: &[u8; 6] = b"TOYBOX";
/// Slots of a fresh container: more than four leaves.
pub const SLOTS: usize = 5000;

pub struct Toy;

fn read_all(base: &dyn ReadAt) -> Result<Vec<u8>, EngineError> {
    let mut bytes = vec![0; base.len()? as usize];
    base.read_exact_at(0, &mut bytes)?;
    if bytes.get(..6) != Some(MAGIC.as_slice()) || !bytes.len().is_multiple_of(SLOT) {
        return Err(EngineError::NotAContainer("not a toy box".to_owned()));
    }
    Ok(bytes)
}

impl Engine for Toy {
    fn inventory(
        &self,
        base: Arc<dyn ReadAt>,
        _previous: Option<&[u8]>,
    ) -> Result<InventoryAnswer, EngineError> {
        let bytes = read_all(&*base)?;
        let rows = bytes[SLOT..].to_vec();
        Ok(InventoryAnswer {
            digest: *blake3::hash(&rows).as_bytes(),
            rows,
        })
    }

    fn apply(&self, base: Arc<dyn ReadAt>, package: &[u8]) -> Result<Applied, EngineError> {
        let bytes = read_all(&*base)?;
        if package == b"grow beyond the disk" {
            let mut write_set = WriteSet::empty(bytes.len() as u64);
            write_set.target_len = 1 << 43;
            return Ok(Applied {
                write_set,
                nid_map: Vec::new(),
            });
        }
        if package == b"panic" {
            panic!("the engine has a bug");
        }
        if !package.len().is_multiple_of(5) {
            return Err(EngineError::Refused("not a list of slots".to_owned()));
        }
        let mut slots = Phase::new("slots");
        let mut end = bytes.len();
        let mut nid_map = Vec::new();
        for entry in package.chunks_exact(5) {
            let mut slot = u32::from_le_bytes(entry[..4].try_into().unwrap());
            if slot == u32::MAX {
                // "Any free slot, please": the engine gives the next one and says so.
                slot = (end / SLOT - 1) as u32;
                nid_map.push((u32::MAX, slot));
            }
            let at = SLOT * (slot as usize + 1);
            slots.writes.push((at as u64, vec![entry[4]; SLOT].into()));
            end = end.max(at + SLOT);
        }
        let mut header = Phase::new("header");
        header
            .writes
            .push((6, vec![bytes[6].wrapping_add(1)].into()));
        let write_set = WriteSet {
            base_len: bytes.len() as u64,
            target_len: end as u64,
            phases: vec![slots, header],
        };
        Ok(Applied { write_set, nid_map })
    }
}

pub fn fresh() -> Vec<u8> {
    let mut bytes = vec![0; SLOT * (SLOTS + 1)];
    bytes[..6].copy_from_slice(MAGIC);
    for (i, byte) in bytes.iter_mut().enumerate().skip(SLOT) {
        *byte = (i * 31 % 251) as u8;
    }
    bytes
}

pub fn package(entries: &[(u32, u8)]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|(s, b)| [&s.to_le_bytes()[..], &[*b]].concat())
        .collect()
}

/// What a container holds after a package, worked out without the engine.
pub fn after(before: &[u8], entries: &[(u32, u8)]) -> Vec<u8> {
    let mut bytes = before.to_vec();
    for (slot, byte) in entries {
        let at = SLOT * (*slot as usize + 1);
        if bytes.len() < at + SLOT {
            bytes.resize(at + SLOT, 0);
        }
        bytes[at..at + SLOT].fill(*byte);
    }
    bytes[6] = bytes[6].wrapping_add(1);
    bytes
}

pub fn digest(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(&bytes[SLOT..]).as_bytes()
}

pub fn generation(bytes: &[u8]) -> Generation {
    let g = storage::Generation::of(&storage::MemStorage::from(bytes)).unwrap();
    Generation {
        len: g.len,
        root: g.root,
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub runtime: tokio::runtime::Runtime,
    pub agent: Option<Agent>,
    pub client: AgentClient,
    pub invitation: Invitation,
}

pub fn config(dir: &Path) -> AgentConfig {
    AgentConfig::new(
        dir.join("root"),
        "127.0.0.1:0".parse().unwrap(),
        dir.join("state"),
    )
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

impl World {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut AgentConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::write(dir.path().join("root/box"), fresh()).unwrap();
        Self::on(dir, change)
    }

    pub fn with_engine(engine: Arc<dyn Engine>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::write(dir.path().join("root/box"), fresh()).unwrap();
        Self::start(dir, |_| {}, engine)
    }

    pub fn on(dir: tempfile::TempDir, change: impl FnOnce(&mut AgentConfig)) -> Self {
        Self::start(dir, change, Arc::new(Toy))
    }

    fn start(
        dir: tempfile::TempDir,
        change: impl FnOnce(&mut AgentConfig),
        engine: Arc<dyn Engine>,
    ) -> Self {
        let mut config = config(dir.path());
        change(&mut config);
        let runtime = runtime();
        let agent = runtime.block_on(agent::start(config, engine)).unwrap();
        let invitation = load_invitation(agent.invitation().unwrap()).unwrap();
        let client = AgentClient::new(&invitation, Timeouts::default()).unwrap();
        Self {
            dir,
            runtime,
            agent: Some(agent),
            client,
            invitation,
        }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("root/box")
    }

    pub fn file(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    pub fn stop(&mut self) {
        if let Some(agent) = self.agent.take() {
            self.runtime.block_on(agent.stop()).unwrap();
        }
    }

    /// Stops, and starts again on the same root and state.
    pub fn restart(mut self, change: impl FnOnce(&mut AgentConfig)) -> Self {
        self.stop();
        let Self {
            dir,
            runtime,
            client,
            ..
        } = self;
        drop(client);
        drop(runtime);
        Self::on(dir, change)
    }

    pub fn apply(&self, sequence: u64, entries: &[(u32, u8)]) -> Result<Sent, ClientError> {
        let before = self.file();
        let expected = digest(&after(&before, entries));
        self.send(
            sequence,
            &package(entries),
            Some(generation(&before)),
            expected,
        )
    }

    pub fn send(
        &self,
        sequence: u64,
        package: &[u8],
        base: Option<Generation>,
        expected: [u8; 32],
    ) -> Result<Sent, ClientError> {
        let apply = Apply {
            client: [7; 16],
            container: "box",
            sequence,
            base,
            expected,
            package,
        };
        self.client.apply(&apply, &mut |_, _| {})
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path().join("root"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ErrorCode {
    let error = result.unwrap_err();
    error
        .code()
        .unwrap_or_else(|| panic!("not refused by the agent: {error:?}"))
}
