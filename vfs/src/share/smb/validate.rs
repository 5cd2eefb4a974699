//! What was negotiated, asked about once more under signature (MS-SMB2 3.2.5.5, 3.3.5.15.12).
//!
//! NEGOTIATE is not signed. From SMB 3.1.1 on both sides hash it into the session's keys; before that,
//! somebody on the way could take dialects or encryption out of it and go unnoticed. So a session of an
//! older dialect, SMB 2.1 among them, is asked for what its server had heard and answered, in a signed
//! exchange. A server too old to know the question says so under the same signature, which nobody else
//! could have done.

use std::io;

use smb2::client::Connection;
use smb2::msg::ioctl::{
    FSCTL_VALIDATE_NEGOTIATE_INFO, IoctlRequest, IoctlResponse, SMB2_0_IOCTL_IS_FSCTL,
};
use smb2::pack::{ReadCursor, Unpack};
use smb2::types::status::NtStatus;
use smb2::types::{Command, Dialect, FileId};
use smb2::{ErrorKind, Tree};

use super::error::{Result, Retry, SmbError};
use super::wire::{HEADER, Tap};

/// Most dialects that we offer.
const MAX_DIALECTS: u16 = 16;
/// Length of the answer (MS-SMB2 2.2.32.6).
const ANSWER: usize = 24;

fn downgraded(what: &str) -> SmbError {
    SmbError::new(
        Retry::Later,
        io::ErrorKind::ConnectionAborted,
        format!(
            "somebody between here and the server changes what they agree on ({what}): the connection \
             is refused"
        ),
    )
}

/// The question, from the NEGOTIATE request that was sent: capabilities, client, security mode, dialects.
fn question(request: &[u8]) -> Option<Vec<u8>> {
    let field = |at: usize, len: usize| request.get(HEADER + at..HEADER + at + len);
    let count = field(2, 2)?;
    let dialects = u16::from_le_bytes([*count.first()?, *count.get(1)?]);
    if dialects > MAX_DIALECTS {
        return None;
    }
    let parts = [
        field(8, 4)?,
        field(12, 16)?,
        field(4, 2)?,
        count,
        field(36, usize::from(dialects) * 2)?,
    ];
    Some(parts.concat())
}

/// What the server should say, from its NEGOTIATE answer: capabilities, server, security mode, dialect.
fn expected(answer: &[u8]) -> Option<Vec<u8>> {
    let field = |at: usize, len: usize| answer.get(HEADER + at..HEADER + at + len);
    Some([field(24, 4)?, field(8, 16)?, field(2, 2)?, field(4, 2)?].concat())
}

/// Refuses a connection whose negotiation was changed on its way. Nothing of the share may be used before.
pub(super) async fn check(conn: &Connection, tree: &Tree, tap: &Tap) -> Result<()> {
    if conn.params().is_none_or(|p| p.dialect == Dialect::Smb3_1_1) {
        return Ok(());
    }
    let Some((request, answer)) = tap.negotiated() else {
        return Err(SmbError::garbage("no NEGOTIATE was seen"));
    };
    let (Some(question), Some(expected)) = (question(&request), expected(&answer)) else {
        return Err(SmbError::garbage("a NEGOTIATE that is too short"));
    };
    let body = IoctlRequest {
        ctl_code: FSCTL_VALIDATE_NEGOTIATE_INFO,
        file_id: FileId::SENTINEL,
        max_input_response: 0,
        max_output_response: ANSWER as u32,
        flags: SMB2_0_IOCTL_IS_FSCTL,
        input_data: question,
    };
    let frame = match conn
        .execute(Command::Ioctl, &body, Some(tree.tree_id))
        .await
    {
        Ok(frame) => frame,
        // What a server does that heard something else than we said.
        Err(e) if e.kind() == ErrorKind::ConnectionLost => {
            return Err(downgraded("the server ends the connection when asked"));
        }
        Err(e) => return Err(SmbError::from_client(&e)),
    };
    match frame.header.status {
        NtStatus::SUCCESS => {}
        // Signed: an older server, which does not know the question.
        NtStatus::NOT_SUPPORTED | NtStatus::INVALID_DEVICE_REQUEST | NtStatus::FILE_CLOSED => {
            return Ok(());
        }
        _ => return Err(downgraded("the server does not confirm it")),
    }
    let said = IoctlResponse::unpack(&mut ReadCursor::new(&frame.body))
        .map_err(|e| SmbError::from_client(&e))?;
    if said.output_data == expected {
        Ok(())
    } else {
        Err(downgraded("the server had answered something else"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_what_was_sent() {
        let mut request = vec![0; HEADER + 44];
        request[HEADER..HEADER + 6].copy_from_slice(&[36, 0, 2, 0, 1, 0]);
        request[HEADER + 8..HEADER + 12].copy_from_slice(&[0x44, 0, 0, 0]);
        request[HEADER + 12..HEADER + 28].fill(7);
        request[HEADER + 36..HEADER + 40].copy_from_slice(&[0x10, 2, 0, 3]);
        let mut wanted = vec![0x44, 0, 0, 0];
        wanted.extend([7; 16]);
        wanted.extend([1, 0, 2, 0, 0x10, 2, 0, 3]);
        assert_eq!(question(&request).unwrap(), wanted);
        request[HEADER + 2] = 200;
        assert_eq!(question(&request), None);
        assert_eq!(question(&request[..HEADER]), None);
    }

    #[test]
    fn the_answer_is_compared_whole() {
        let mut answer = vec![0; HEADER + 64];
        answer[HEADER + 2] = 3;
        answer[HEADER + 4..HEADER + 6].copy_from_slice(&[2, 3]);
        answer[HEADER + 8..HEADER + 24].fill(9);
        answer[HEADER + 24] = 0x47;
        let mut wanted = vec![0x47, 0, 0, 0];
        wanted.extend([9; 16]);
        wanted.extend([3, 0, 2, 3]);
        assert_eq!(expected(&answer).unwrap(), wanted);
        assert_eq!(wanted.len(), ANSWER);
        assert_eq!(expected(&answer[..HEADER + 20]), None);
    }
}
