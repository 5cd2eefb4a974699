//! The requests on open files that the client library has no call for: with share modes of our
//! choice, at any offset, on many at a time.

use std::future::{Future, poll_fn};
use std::ops::Range;
use std::task::Poll;

use smb2::client::CompoundOp;
use smb2::msg::close::CloseRequest;
use smb2::msg::create::{
    CreateDisposition, CreateRequest, CreateResponse, ImpersonationLevel, ShareAccess,
};
use smb2::msg::flush::FlushRequest;
use smb2::msg::lock::{
    LockElement, LockRequest, SMB2_LOCKFLAG_EXCLUSIVE_LOCK, SMB2_LOCKFLAG_FAIL_IMMEDIATELY,
    SMB2_LOCKFLAG_SHARED_LOCK, SMB2_LOCKFLAG_UNLOCK,
};
use smb2::msg::query_info::{InfoType, QueryInfoRequest, QueryInfoResponse};
use smb2::msg::read::ReadRequest;
use smb2::msg::set_info::SetInfoRequest;
use smb2::msg::write::WriteResponse;
use smb2::pack::{FileTime, Pack, ReadCursor, Unpack, WriteCursor};
use smb2::types::flags::FileAccessMask;
use smb2::types::status::NtStatus;
use smb2::types::{Command, CreditCharge, FileId, OplockLevel};
use smb2::{Error, Frame};

use super::attr::Facts;
use super::error::status::LOCK_NOT_GRANTED;
use super::session::{Live, UNIT};
use super::wire::HEADER;

/// MS-FSCC 2.4: information classes.
const BASIC: u8 = 4;
const INTERNAL: u8 = 6;
const END_OF_FILE: u8 = 20;
const NETWORK_OPEN: u8 = 34;
/// MS-SMB2 2.2.13: not a directory.
const NON_DIRECTORY: u32 = 0x40;
/// Most requests of one call on the way at once.
const WINDOW: usize = 8;

/// How to open a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    /// For writing too.
    pub(super) write: bool,
    /// Nobody else may write meanwhile.
    pub(super) alone: bool,
    /// It must not exist; its DOS attributes.
    pub(super) create: Option<u32>,
}

impl How {
    fn request(self, name: String) -> CreateRequest {
        let mut access = FileAccessMask::FILE_READ_DATA
            | FileAccessMask::FILE_READ_ATTRIBUTES
            | FileAccessMask::SYNCHRONIZE;
        if self.write {
            access |= FileAccessMask::FILE_WRITE_DATA
                | FileAccessMask::FILE_APPEND_DATA
                | FileAccessMask::FILE_WRITE_ATTRIBUTES;
        }
        // Deleting and renaming an open file is what POSIX programs do.
        let mut share = ShareAccess::FILE_SHARE_READ | ShareAccess::FILE_SHARE_DELETE;
        if !self.alone {
            share |= ShareAccess::FILE_SHARE_WRITE;
        }
        CreateRequest {
            // No oplock, no lease: nothing to break, and nothing cached that could be stale.
            requested_oplock_level: OplockLevel::None,
            impersonation_level: ImpersonationLevel::Impersonation,
            desired_access: FileAccessMask::new(access),
            file_attributes: self.create.unwrap_or(0),
            share_access: ShareAccess(share),
            create_disposition: match self.create {
                Some(_) => CreateDisposition::FileCreate,
                None => CreateDisposition::FileOpen,
            },
            create_options: NON_DIRECTORY,
            name,
            create_contexts: Vec::new(),
        }
    }
}

/// A part of a file that is locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: Range<u64>,
    pub(super) exclusive: bool,
}

impl Part {
    fn request(&self, file_id: FileId, flags: u32) -> LockRequest {
        LockRequest {
            // Told apart only for handles that outlive their session, which ours do not.
            lock_sequence: 0,
            file_id,
            locks: vec![LockElement {
                offset: self.range.start,
                length: self.range.end.saturating_sub(self.range.start),
                flags,
            }],
        }
    }
}

/// WRITE (MS-SMB2 2.2.21) of bytes that lie somewhere else.
struct Write<'a> {
    at: u64,
    id: FileId,
    data: &'a [u8],
}

impl Pack for Write<'_> {
    fn pack(&self, cursor: &mut WriteCursor) {
        // StructureSize, which counts one byte of the data, and DataOffset.
        cursor.write_u16_le(49);
        cursor.write_u16_le(0x70);
        cursor.write_u32_le(u32::try_from(self.data.len()).unwrap_or(u32::MAX));
        cursor.write_u64_le(self.at);
        cursor.write_u64_le(self.id.persistent);
        cursor.write_u64_le(self.id.volatile);
        // No other channel, and no flags.
        cursor.write_zeros(4 + 4 + 2 + 2 + 4);
        cursor.write_bytes(self.data);
    }
}

/// The bytes of a READ's answer, where they lie in it.
#[derive(Default)]
struct Data {
    body: Vec<u8>,
    from: usize,
}

impl Data {
    /// Of an answer to a READ of `asked` bytes (MS-SMB2 2.2.20).
    fn of(mut body: Vec<u8>, asked: usize) -> smb2::Result<Self> {
        const FIXED: usize = 16;
        let len = u32::from_le_bytes(field(&body, 4)?) as usize;
        // DataOffset counts the header of the answer, which is not in the body.
        let at = usize::from(u8::from_le_bytes(field(&body, 2)?));
        let from = match len {
            0 => FIXED,
            _ => at.saturating_sub(HEADER),
        };
        let there = from >= FIXED && body.len().checked_sub(from) >= Some(len);
        let known = u16::from_le_bytes(field(&body, 0)?) == 17;
        if !known || !there || len > asked {
            return Err(Error::InvalidData {
                message: format!("{len} bytes at {at} for a READ of {asked}"),
            });
        }
        body.truncate(from + len);
        Ok(Self { body, from })
    }

    fn bytes(&self) -> &[u8] {
        self.body.get(self.from..).unwrap_or_default()
    }

    fn into_bytes(mut self) -> Vec<u8> {
        self.body.drain(..self.from);
        self.body
    }
}

fn refused(status: NtStatus, command: Command) -> Error {
    Error::Protocol { status, command }
}

fn unpacked<T: Unpack>(frame: &Frame) -> smb2::Result<T> {
    T::unpack(&mut ReadCursor::new(&frame.body))
}

fn query(class: u8, len: u32, file_id: FileId) -> QueryInfoRequest {
    QueryInfoRequest {
        info_type: InfoType::File,
        file_info_class: class,
        output_buffer_length: len,
        additional_information: 0,
        flags: 0,
        file_id,
        input_buffer: Vec::new(),
    }
}

/// A field of an answer: `N` bytes at `at`.
fn field<const N: usize>(data: &[u8], at: usize) -> smb2::Result<[u8; N]> {
    data.get(at..)
        .and_then(|d| d.first_chunk::<N>())
        .copied()
        .ok_or_else(|| Error::InvalidData {
            message: format!("an answer of {} bytes is too short", data.len()),
        })
}

impl Live {
    async fn ask(&self, command: Command, body: &dyn Pack, bytes: usize) -> smb2::Result<Frame> {
        let charge = bytes.div_ceil(UNIT).clamp(1, usize::from(u16::MAX));
        let charge = CreditCharge(u16::try_from(charge).unwrap_or(u16::MAX));
        let tree = Some(self.tree.tree_id);
        let frame = self
            .conn
            .execute_with_credits(command, body, tree, charge)
            .await?;
        if frame.header.command != command {
            return Err(Error::InvalidData {
                message: format!("{command:?} was answered by {:?}", frame.header.command),
            });
        }
        Ok(frame)
    }

    async fn done(&self, command: Command, body: &dyn Pack) -> smb2::Result<Frame> {
        let frame = self.ask(command, body, 0).await?;
        match frame.header.status {
            NtStatus::SUCCESS => Ok(frame),
            status => Err(refused(status, command)),
        }
    }

    /// Opens a file by its name on the wire.
    pub(super) async fn open(&self, name: String, how: How) -> smb2::Result<(FileId, Facts)> {
        let create = how.request(name);
        let index = query(INTERNAL, 8, FileId::SENTINEL);
        let tree = Some(self.tree.tree_id);
        let ops = [
            CompoundOp::new(Command::Create, &create, tree),
            CompoundOp::new(Command::QueryInfo, &index, tree),
        ];
        let mut answers = self.conn.execute_compound(&ops).await?.into_iter();
        let (Some(made), Some(index)) = (answers.next(), answers.next()) else {
            return Err(Error::InvalidData {
                message: "half of an answer is missing".to_owned(),
            });
        };
        let mut made = made?;
        if made.header.status == NtStatus::INTERNAL_ERROR {
            // Windows does not wait for others within a compound (MS-SMB2 3.3.5.2.7).
            made = self.ask(Command::Create, &create, 0).await?;
        }
        if made.header.status != NtStatus::SUCCESS {
            return Err(refused(made.header.status, Command::Create));
        }
        let made: CreateResponse = unpacked(&made)?;
        let index = match index {
            Ok(f) if f.header.status == NtStatus::SUCCESS => {
                let answer: QueryInfoResponse = unpacked(&f)?;
                u64::from_le_bytes(field(&answer.output_buffer, 0)?)
            }
            _ => 0,
        };
        let facts = Facts {
            size: made.end_of_file,
            attributes: made.file_attributes,
            modified: made.last_write_time,
            accessed: made.last_access_time,
            changed: made.change_time,
            index,
        };
        Ok((made.file_id, facts))
    }

    pub(super) async fn close(&self, file_id: FileId) -> smb2::Result<()> {
        let body = CloseRequest { flags: 0, file_id };
        self.done(Command::Close, &body).await.map(drop)
    }

    /// What the server says of an open file; its index number is the caller's.
    pub(super) async fn facts(&self, file_id: FileId, index: u64) -> smb2::Result<Facts> {
        let body = query(NETWORK_OPEN, 56, file_id);
        let frame = self.done(Command::QueryInfo, &body).await?;
        let answer: QueryInfoResponse = unpacked(&frame)?;
        let data = answer.output_buffer.as_slice();
        let time = |at| field(data, at).map(|b| FileTime(u64::from_le_bytes(b)));
        Ok(Facts {
            accessed: time(8)?,
            modified: time(16)?,
            changed: time(24)?,
            size: u64::from_le_bytes(field(data, 40)?),
            attributes: u32::from_le_bytes(field(data, 48)?),
            index,
        })
    }

    /// One READ: fewer bytes only at the end of the file.
    async fn read_one(&self, file_id: FileId, offset: u64, len: usize) -> smb2::Result<Data> {
        let body = ReadRequest {
            padding: 0x50,
            flags: 0,
            length: u32::try_from(len).unwrap_or(u32::MAX),
            offset,
            file_id,
            minimum_count: 0,
            channel: 0,
            remaining_bytes: 0,
            read_channel_info: Vec::new(),
        };
        let frame = self.ask(Command::Read, &body, len).await?;
        match frame.header.status {
            NtStatus::SUCCESS => Data::of(frame.body, len),
            NtStatus::END_OF_FILE => Ok(Data::default()),
            status => Err(refused(status, Command::Read)),
        }
    }

    /// A piece of at most [`Live::chunk`] bytes, to its last byte or the file's. A server may answer
    /// a READ with less than there is.
    pub(super) async fn read_piece(
        &self,
        id: FileId,
        offset: u64,
        len: usize,
    ) -> smb2::Result<Vec<u8>> {
        let mut have = self.read_one(id, offset, len).await?.into_bytes();
        while !have.is_empty() && have.len() < len {
            let at = offset + have.len() as u64;
            let more = self.read_one(id, at, len - have.len()).await?;
            if more.bytes().is_empty() {
                break;
            }
            have.extend_from_slice(more.bytes());
        }
        Ok(have)
    }

    /// As [`Live::read_piece`], into a buffer.
    async fn read_into(&self, id: FileId, offset: u64, buf: &mut [u8]) -> smb2::Result<usize> {
        let mut done = 0;
        while let Some(room) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            let data = self.read_one(id, offset + done as u64, room.len()).await?;
            let data = data.bytes();
            let Some(room) = room.get_mut(..data.len()).filter(|r| !r.is_empty()) else {
                break;
            };
            room.copy_from_slice(data);
            done += data.len();
        }
        Ok(done)
    }

    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    pub(super) async fn read(
        &self,
        id: FileId,
        offset: u64,
        buf: &mut [u8],
    ) -> smb2::Result<usize> {
        let (chunk, mut done) = (self.chunk, 0);
        for part in buf.chunks_mut(chunk * WINDOW) {
            let base = offset + done as u64;
            let pieces = part.chunks_mut(chunk).enumerate().map(|(i, piece)| {
                let from = base + (i * chunk) as u64;
                async move { Ok((piece.len(), self.read_into(id, from, piece).await?)) }
            });
            let pieces: Vec<(usize, usize)> = all(pieces).await?;
            let short = pieces.iter().position(|(wanted, had)| had < wanted);
            let whole = short.map_or(pieces.len(), |i| i + 1);
            done += pieces.iter().take(whole).map(|(_, had)| had).sum::<usize>();
            if short.is_some() {
                break;
            }
        }
        Ok(done)
    }

    async fn write_piece(&self, id: FileId, mut at: u64, mut data: &[u8]) -> smb2::Result<()> {
        while !data.is_empty() {
            let len = data.len();
            let body = Write { at, id, data };
            let frame = self.ask(Command::Write, &body, len).await?;
            if frame.header.status != NtStatus::SUCCESS {
                return Err(refused(frame.header.status, Command::Write));
            }
            let answer: WriteResponse = unpacked(&frame)?;
            let count = answer.count as usize;
            data = match data.get(count..).filter(|_| count > 0) {
                Some(rest) => rest,
                None => {
                    return Err(Error::InvalidData {
                        message: format!("{count} bytes written of {len}"),
                    });
                }
            };
            at += count as u64;
        }
        Ok(())
    }

    /// Writes all of `data`.
    pub(super) async fn write(&self, id: FileId, offset: u64, data: &[u8]) -> smb2::Result<()> {
        let chunk = self.chunk;
        for (n, part) in data.chunks(chunk * WINDOW).enumerate() {
            let base = offset + (n * chunk * WINDOW) as u64;
            let pieces = part.chunks(chunk).enumerate().map(|(i, piece)| {
                let at = base + (i * chunk) as u64;
                self.write_piece(id, at, piece)
            });
            all(pieces).await?;
        }
        Ok(())
    }

    pub(super) async fn flush(&self, file_id: FileId) -> smb2::Result<()> {
        let body = FlushRequest { file_id };
        self.done(Command::Flush, &body).await.map(drop)
    }

    async fn set_info(&self, file_id: FileId, class: u8, buffer: Vec<u8>) -> smb2::Result<()> {
        let body = SetInfoRequest {
            info_type: InfoType::File,
            file_info_class: class,
            additional_information: 0,
            file_id,
            buffer,
        };
        self.done(Command::SetInfo, &body).await.map(drop)
    }

    /// LOCK, without waiting; `false`: another handle has a lock there.
    pub(super) async fn lock(&self, file_id: FileId, part: &Part) -> smb2::Result<bool> {
        let kind = if part.exclusive {
            SMB2_LOCKFLAG_EXCLUSIVE_LOCK
        } else {
            SMB2_LOCKFLAG_SHARED_LOCK
        };
        let body = part.request(file_id, kind | SMB2_LOCKFLAG_FAIL_IMMEDIATELY);
        let frame = self.ask(Command::Lock, &body, 0).await?;
        match frame.header.status {
            NtStatus::SUCCESS => Ok(true),
            NtStatus(LOCK_NOT_GRANTED) | NtStatus::FILE_LOCK_CONFLICT => Ok(false),
            status => Err(refused(status, Command::Lock)),
        }
    }

    /// Takes back one LOCK of just this range.
    pub(super) async fn unlock(&self, file_id: FileId, part: &Part) -> smb2::Result<()> {
        let body = part.request(file_id, SMB2_LOCKFLAG_UNLOCK);
        self.done(Command::Lock, &body).await.map(drop)
    }

    pub(super) async fn set_len(&self, file_id: FileId, len: u64) -> smb2::Result<()> {
        self.set_info(file_id, END_OF_FILE, len.to_le_bytes().to_vec())
            .await
    }

    /// Sets times and DOS attributes of an open file; zero leaves as it is (MS-FSCC 2.4.7).
    pub(super) async fn set_basic(
        &self,
        file_id: FileId,
        accessed: FileTime,
        modified: FileTime,
        attributes: u32,
    ) -> smb2::Result<()> {
        let mut buffer = Vec::with_capacity(40);
        for time in [FileTime::ZERO, accessed, modified, FileTime::ZERO] {
            buffer.extend_from_slice(&time.0.to_le_bytes());
        }
        buffer.extend_from_slice(&attributes.to_le_bytes());
        buffer.extend_from_slice(&[0; 4]);
        self.set_info(file_id, BASIC, buffer).await
    }
}

/// Runs all at once, on the thread that asks: what one of them packs and signs goes out while the next one does. The
/// answers in order. Every one is waited for: a request that is left behind could still write.
async fn all<T>(
    work: impl Iterator<Item = impl Future<Output = smb2::Result<T>>>,
) -> smb2::Result<Vec<T>> {
    let mut work: Vec<_> = work.map(|w| (Box::pin(w), None)).collect();
    poll_fn(|context| {
        let mut waiting = false;
        for (work, done) in work.iter_mut().filter(|w| w.1.is_none()) {
            match work.as_mut().poll(context) {
                Poll::Ready(answer) => *done = Some(answer),
                Poll::Pending => waiting = true,
            }
        }
        if waiting {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    work.into_iter().filter_map(|w| w.1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use smb2::msg::write::WriteRequest;

    #[test]
    fn a_write_is_packed_as_the_library_packs_it() {
        let id = FileId {
            persistent: 0x0102_0304_0506_0708,
            volatile: 0x1112_1314_1516_1718,
        };
        let data = b"some bytes".as_slice();
        let (mut ours, mut theirs) = (WriteCursor::new(), WriteCursor::new());
        Write { at: 77, id, data }.pack(&mut ours);
        WriteRequest {
            data_offset: 0x70,
            offset: 77,
            file_id: id,
            channel: 0,
            remaining_bytes: 0,
            write_channel_info_offset: 0,
            write_channel_info_length: 0,
            flags: 0,
            data: data.to_vec(),
        }
        .pack(&mut theirs);
        assert_eq!(ours.into_inner(), theirs.into_inner());
    }

    /// READ's answer with `len` bytes said, `there` there and the data at `at` of the message.
    fn answer(at: u8, len: u32, there: usize) -> Vec<u8> {
        let mut body = vec![17, 0, at, 0];
        body.extend_from_slice(&len.to_le_bytes());
        body.resize(usize::from(at).saturating_sub(HEADER).max(16), 0xEE);
        body.extend((0..there).map(|i| i as u8));
        body
    }

    #[test]
    fn the_bytes_of_an_answer_are_taken_from_where_it_says() {
        for at in [80, 88] {
            let data = Data::of(answer(at, 5, 7), 10).unwrap();
            assert_eq!(data.bytes(), [0, 1, 2, 3, 4]);
            assert_eq!(data.into_bytes(), [0, 1, 2, 3, 4]);
        }
        assert!(Data::of(answer(0, 0, 0), 10).unwrap().bytes().is_empty());
    }

    #[test]
    fn an_answer_that_cannot_be_is_refused() {
        // More than was asked for, more than is there, before the end of the fixed part, beyond the end.
        for (at, len, there) in [
            (80, 11, 11),
            (80, 5, 4),
            (79, 5, 5),
            (0, 5, 5),
            (80, u32::MAX, 9),
        ] {
            assert!(
                Data::of(answer(at, len, there), 10).is_err(),
                "{at} {len} {there}"
            );
        }
        for short in 0..8 {
            assert!(
                Data::of(answer(80, 0, 0)[..short].to_vec(), 10).is_err(),
                "{short}"
            );
        }
        let mut other = answer(80, 5, 5);
        other[0] = 9;
        assert!(Data::of(other, 10).is_err());
    }

    #[test]
    fn pieces_of_a_call_are_all_waited_for() {
        let done = std::cell::Cell::new(0);
        let work = (0..3).map(|i| {
            let done = &done;
            async move {
                for _ in 0..i * 2 {
                    tokio::task::yield_now().await;
                }
                done.set(done.get() + 1);
                if i == 0 {
                    return Err(Error::Disconnected);
                }
                Ok(i)
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        assert!(runtime.block_on(all(work)).is_err());
        assert_eq!(done.get(), 3, "the others may still write");
        let answers = runtime.block_on(all((0..3).map(|i| async move { Ok(i) })));
        assert_eq!(answers.unwrap(), [0, 1, 2]);
    }
}
