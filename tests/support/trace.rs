//! The recorded write calls of a real mail writer, to be replayed through the mount.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde_json::Value;

use super::shared;

/// One call of the writer.
pub enum Call {
    Write { offset: u64, data: Vec<u8> },
    Truncate { len: u64 },
}

/// The PST before the traces; `None` where this machine has none.
pub fn mail_pst() -> Option<Vec<u8>> {
    let packed = std::fs::read(shared("traces/mail.pst.zst")?).expect("reads");
    Some(zstd::decode_all(packed.as_slice()).expect("zstd"))
}

/// The calls of one trace, in order.
pub fn calls(name: &str) -> Vec<Call> {
    let path = shared(&format!("traces/{name}.jsonl.zst")).expect("the trace is beside mail.pst");
    let packed = std::fs::read(path).expect("reads");
    let text = String::from_utf8(zstd::decode_all(packed.as_slice()).expect("zstd")).expect("text");
    text.lines().map(parse).collect()
}

fn parse(line: &str) -> Call {
    let value: Value = serde_json::from_str(line).expect("JSON");
    match value["op"].as_str() {
        Some("write") => Call::Write {
            offset: value["off"].as_u64().expect("off"),
            data: unhex(value["data"].as_str().expect("data")),
        },
        Some("truncate") => Call::Truncate {
            len: value["len"].as_u64().expect("len"),
        },
        other => panic!("unknown call {other:?}"),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("hex");
            u8::from_str_radix(pair, 16).expect("hex")
        })
        .collect()
}

/// Does one call on an open file.
pub fn replay(file: &File, call: &Call) {
    match call {
        Call::Write { offset, data } => file.write_all_at(data, *offset).expect("writes"),
        Call::Truncate { len } => file.set_len(*len).expect("truncates"),
    }
}

/// Does one call on bytes in memory: the model.
pub fn replay_in_memory(bytes: &mut Vec<u8>, call: &Call) {
    match call {
        Call::Write { offset, data } => {
            let start = usize::try_from(*offset).expect("fits");
            let end = start + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(data);
        }
        Call::Truncate { len } => bytes.resize(usize::try_from(*len).expect("fits"), 0),
    }
}
