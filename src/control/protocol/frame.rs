//! Requests and replies as lines with a version, which is read before the rest.

use serde::{Deserialize, Serialize};

use super::{MAX_REPLY, MAX_REQUEST, Reply, Request, VERSION};
use crate::error::UserError;

#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestFrame {
    v: u32,
    request: Request,
}

#[derive(Serialize, Deserialize)]
struct ReplyFrame {
    v: u32,
    #[serde(flatten)]
    reply: Reply,
}

/// The request as a line with its newline.
///
/// # Errors
/// It is longer than [`MAX_REQUEST`].
pub fn encode_request(request: &Request) -> Result<Vec<u8>, UserError> {
    line(
        &RequestFrame {
            v: VERSION,
            request: request.clone(),
        },
        MAX_REQUEST,
    )
}

/// The reply as a line with its newline.
///
/// # Errors
/// It is longer than [`MAX_REPLY`].
pub fn encode_reply(reply: &Reply) -> Result<Vec<u8>, UserError> {
    line(
        &ReplyFrame {
            v: VERSION,
            reply: reply.clone(),
        },
        MAX_REPLY,
    )
}

fn line(frame: &impl Serialize, limit: usize) -> Result<Vec<u8>, UserError> {
    let mut bytes = serde_json::to_vec(frame).map_err(|e| bad(&e.to_string()))?;
    bytes.push(b'\n');
    if bytes.len() > limit {
        return Err(bad(&format!("{} bytes are more than {limit}", bytes.len())));
    }
    Ok(bytes)
}

/// Reads a request line.
///
/// # Errors
/// It is no request of this version.
pub fn decode_request(line: &[u8]) -> Result<Request, UserError> {
    check_version(line)?;
    let frame: RequestFrame = serde_json::from_slice(line).map_err(|e| bad(&e.to_string()))?;
    Ok(frame.request)
}

/// Reads a reply line.
///
/// # Errors
/// It is no reply of this version.
pub fn decode_reply(line: &[u8]) -> Result<Reply, UserError> {
    check_version(line)?;
    let frame: ReplyFrame = serde_json::from_slice(line).map_err(|e| bad(&e.to_string()))?;
    Ok(frame.reply)
}

fn check_version(line: &[u8]) -> Result<(), UserError> {
    let Versioned { v } = serde_json::from_slice(line).map_err(|e| bad(&e.to_string()))?;
    if v == VERSION {
        return Ok(());
    }
    Err(UserError::new(
        "control-version",
        format!("the command and the daemon are of different versions ({VERSION} and {v})"),
        "unmount and mount again, so that both are the same pstsyncd",
    ))
}

fn bad(detail: &str) -> UserError {
    UserError::new(
        "control-protocol",
        format!("the control socket carried a message that makes no sense: {detail}"),
        "check that command and daemon are the same pstsyncd",
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Event, Policy};
    use super::*;

    #[test]
    fn frames_are_the_documented_ones() {
        let line = encode_request(&Request::Status {}).unwrap();
        assert_eq!(line, b"{\"v\":1,\"request\":{\"op\":\"status\"}}\n");
        let line = encode_reply(&Reply::Event(Event::Alive {})).unwrap();
        assert_eq!(line, b"{\"v\":1,\"event\":{\"kind\":\"alive\"}}\n");
        let error = UserError::new("a", "b", "c");
        let reply = Reply::Error(error);
        assert_eq!(decode_reply(&encode_reply(&reply).unwrap()).unwrap(), reply);
    }

    #[test]
    fn every_request_comes_back() {
        let all = [
            Request::Ping {},
            Request::Status {},
            Request::SetMode {
                policy: Policy::Cached,
                for_seconds: None,
            },
            Request::SetMode {
                policy: Policy::Offline,
                for_seconds: Some(7200),
            },
            Request::SetLimit {
                limit: Some(crate::policy::cap::Cap {
                    up: Some(1_000_000),
                    down: None,
                }),
                for_seconds: Some(60),
            },
            Request::SetLimit {
                limit: None,
                for_seconds: None,
            },
            Request::Explain {},
            Request::Link {},
            Request::Plan {},
            Request::SyncNow {
                path: None,
                allow_deletes: false,
            },
            Request::SyncNow {
                path: Some("a/b.pst".into()),
                allow_deletes: true,
            },
            Request::Unmount { now: true },
        ];
        for request in all {
            let line = encode_request(&request).unwrap();
            assert_eq!(decode_request(&line).unwrap(), request);
        }
    }

    #[test]
    fn other_versions_and_unknown_fields_are_refused() {
        let other = decode_request(br#"{"v":2,"request":{"op":"fly"},"new":1}"#).unwrap_err();
        assert_eq!(other.code, "control-version");
        for line in [
            &br#"{"v":1,"request":{"op":"status","deep":true}}"#[..],
            br#"{"v":1,"request":{"op":"fly"}}"#,
            br#"{"v":1,"request":{"op":"ping"},"also":1}"#,
            br#"{"v":1}"#,
            br#"{"request":{"op":"ping"}}"#,
            b"\xff\xfe",
            b"",
        ] {
            assert_eq!(decode_request(line).unwrap_err().code, "control-protocol");
        }
    }
}
