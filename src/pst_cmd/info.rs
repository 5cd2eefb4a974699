//! `pst info`: what a PST is, and how much is in it.

use std::path::Path;

use pst::messaging::tags;
use pst::ndb::{CryptMethod, SizeState};
use pst::{Bref, PstError};
use serde::Serialize;

use super::{explain, open};
use crate::error::Outcome;
use crate::exit::ExitStatus;
use crate::output::{Output, clean, count, size};

#[derive(Serialize)]
struct Info {
    file: String,
    /// HEADER.wVer.
    version: u16,
    format: &'static str,
    encoding: &'static str,
    /// Bytes, by ROOT.ibFileEof.
    size: u64,
    /// Against the limit that Outlook has for the format: "fine", "near" (from 95 % on) or "full".
    size_state: &'static str,
    /// PidTagDisplayName of the store.
    name: Option<String>,
    /// PidTagRecordKey of the store, in hexadecimal: its identity.
    record_key: Option<String>,
    folders: u64,
    messages: u64,
    associated: u64,
    raw_nodes: u64,
    nodes: u64,
    blocks: u64,
    /// Bytes that the allocation maps call free.
    free: u64,
    /// "valid", or "invalid": a writer stopped in the middle.
    allocation_maps: &'static str,
    /// Whether a header write was cut off between its two sectors.
    header_torn: bool,
    /// HEADER.dwUnique.
    unique: u32,
    nbt_root: Root,
    bbt_root: Root,
}

#[derive(Serialize)]
struct Root {
    bid: String,
    offset: u64,
}

impl From<Bref> for Root {
    fn from(bref: Bref) -> Self {
        Self {
            bid: bref.bid.to_string(),
            offset: bref.ib,
        }
    }
}

pub(super) fn run(path: &Path, out: &mut Output) -> Outcome {
    let info = read(path)?;
    out.result(&info, |out| {
        out.line(format_args!("file       {}", clean(&info.file)))?;
        if let Some(name) = &info.name {
            out.line(format_args!("name       {}", clean(name)))?;
        }
        if let Some(key) = &info.record_key {
            out.line(format_args!("identity   {key}"))?;
        }
        let Info {
            format,
            version,
            encoding,
            ..
        } = &info;
        out.line(format_args!(
            "format     {format} ({version}), encoding {encoding}"
        ))?;
        out.line(format_args!(
            "size       {}, {} free{}",
            size(info.size),
            size(info.free),
            match info.size_state {
                "near" => "; near the limit of its format: move mail to another file",
                "full" =>
                    "; at the limit of its format: it takes only what fits into its free space",
                _ => "",
            }
        ))?;
        out.line(format_args!(
            "holds      {} folders, {} messages, {} associated messages, {} raw nodes",
            count(info.folders),
            count(info.messages),
            count(info.associated),
            count(info.raw_nodes)
        ))?;
        out.line(format_args!(
            "structure  {} nodes (root {} at {:#x}), {} blocks (root {} at {:#x})",
            count(info.nodes),
            info.nbt_root.bid,
            info.nbt_root.offset,
            count(info.blocks),
            info.bbt_root.bid,
            info.bbt_root.offset
        ))?;
        let torn = if info.header_torn {
            "; the header is torn"
        } else {
            ""
        };
        out.line(format_args!("maps       {}{torn}", info.allocation_maps))
    })?;
    Ok(ExitStatus::Synced)
}

fn read(path: &Path) -> Result<Info, crate::error::UserError> {
    let failed = |e: PstError| explain(path, &e);
    let pst = open(path)?;
    let (ndb, header) = (pst.ndb(), pst.ndb().header());
    let index = pst.index().map_err(failed)?;
    let store = pst.store().map_err(failed)?;
    let all = || index.messages.values().flatten();
    let number = |n: usize| n as u64;
    let mut nodes = 0;
    for node in ndb.nodes() {
        node.map_err(failed)?;
        nodes += 1;
    }
    let mut blocks = 0;
    for block in ndb.blocks() {
        block.map_err(failed)?;
        blocks += 1;
    }
    Ok(Info {
        file: path.display().to_string(),
        version: header.version,
        format: match header.version {
            14 | 15 => "ANSI",
            23 => "Unicode",
            36 | 37 => "Unicode, 4K pages",
            _ => "unknown",
        },
        encoding: match header.crypt {
            CryptMethod::None => "none",
            CryptMethod::Permute => "permute",
            CryptMethod::Cyclic => "cyclic",
        },
        size: header.file_eof,
        size_state: match ndb.size_state() {
            SizeState::Fine => "fine",
            SizeState::Near => "near",
            SizeState::Full => "full",
        },
        name: store.str(tags::DISPLAY_NAME).filter(|n| !n.is_empty()),
        record_key: store
            .get(tags::RECORD_KEY)
            .and_then(|v| v.as_bytes())
            .map(hex),
        folders: number(index.folders.len()),
        messages: number(all().filter(|m| !m.associated).count()),
        associated: number(all().filter(|m| m.associated).count()),
        raw_nodes: number(index.raw.len()),
        nodes,
        blocks,
        free: header.amap_free,
        allocation_maps: if header.amap_valid == 0 {
            "invalid"
        } else {
            "valid"
        },
        header_torn: header.torn,
        unique: header.unique,
        nbt_root: header.nbt.into(),
        bbt_root: header.bbt.into(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
