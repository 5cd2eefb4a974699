//! Property ids ([MS-OXPROPS]) and subnode NIDs ([MS-PST] 2.4.1) that the messaging layer acts on.

/// PidTagMessageClass.
pub const MESSAGE_CLASS: u16 = 0x001A;
/// PidTagSubject; may begin with U+0001 and the prefix length ([MS-PST] 2.5.3.1.1.1).
pub const SUBJECT: u16 = 0x0037;
/// PidTagMessageFlags ([MS-OXCMSG] 2.2.1.6).
pub const MESSAGE_FLAGS: u16 = 0x0E07;
/// PidTagMessageSize, in bytes.
pub const MESSAGE_SIZE: u16 = 0x0E08;
/// PidTagMessageStatus.
pub const MESSAGE_STATUS: u16 = 0x0E17;
/// PidTagHasAttachments; computed from the flags ([MS-PST] 2.5.3.1).
pub const HAS_ATTACHMENTS: u16 = 0x0E1B;
/// PidTagAttachSize.
pub const ATTACH_SIZE: u16 = 0x0E20;
/// PidTagRecordKey.
pub const RECORD_KEY: u16 = 0x0FF9;
/// PidTagInternetMessageId.
pub const INTERNET_MESSAGE_ID: u16 = 0x1035;
/// PidTagSearchKey.
pub const SEARCH_KEY: u16 = 0x300B;
/// PidTagDisplayName.
pub const DISPLAY_NAME: u16 = 0x3001;
/// PidTagComment.
pub const COMMENT: u16 = 0x3004;
/// PidTagContentCount.
pub const CONTENT_COUNT: u16 = 0x3602;
/// PidTagContentUnreadCount.
pub const CONTENT_UNREAD: u16 = 0x3603;
/// PidTagIpmSubTreeEntryId, in the store.
pub const IPM_SUBTREE: u16 = 0x35E0;
/// PidTagSubfolders.
pub const SUBFOLDERS: u16 = 0x360A;
/// PidTagAttachDataBinary or PidTagAttachDataObject: one id, two types ([MS-PST] 2.4.6.2.2).
pub const ATTACH_DATA: u16 = 0x3701;
/// PidTagAttachMethod ([MS-OXCMSG] 2.2.2.9).
pub const ATTACH_METHOD: u16 = 0x3705;
/// PidTagLtpRowId.
pub const LTP_ROW_ID: u16 = 0x67F2;
/// PidTagLtpRowVer.
pub const LTP_ROW_VER: u16 = 0x67F3;

/// PidTagBody.
pub const BODY: u16 = 0x1000;
/// PidTagSenderName.
pub const SENDER_NAME: u16 = 0x0C1A;
/// PidTagSenderEmailAddress.
pub const SENDER_EMAIL_ADDRESS: u16 = 0x0C1F;
/// PidTagMessageDeliveryTime.
pub const MESSAGE_DELIVERY_TIME: u16 = 0x0E06;
/// PidTagLastModificationTime.
pub const LAST_MODIFICATION_TIME: u16 = 0x3008;
/// PidTagRecipientType ([MS-OXOMSG] 2.2.3.1).
pub const RECIPIENT_TYPE: u16 = 0x0C15;
/// PidTagAddressType.
pub const ADDRESS_TYPE: u16 = 0x3002;
/// PidTagEmailAddress.
pub const EMAIL_ADDRESS: u16 = 0x3003;
/// PidTagAttachLongFilename.
pub const ATTACH_LONG_FILENAME: u16 = 0x3707;

/// `afEmbeddedMessage`: the attachment is a message.
pub const METHOD_EMBEDDED: i32 = 5;
/// `mfRead` in PidTagMessageFlags.
pub const FLAG_READ: i32 = 0x01;
/// `mfHasAttach` in PidTagMessageFlags.
pub const FLAG_HAS_ATTACH: i32 = 0x10;

/// PidTagInternetCodepage.
pub const INTERNET_CODEPAGE: u16 = 0x3FDE;
/// PidTagMessageCodepage.
pub const MESSAGE_CODEPAGE: u16 = 0x3FFD;

/// PtypInteger32.
pub const PT_I32: u16 = 0x0003;
/// PtypBoolean.
pub const PT_BOOL: u16 = 0x000B;
/// PtypObject.
pub const PT_OBJECT: u16 = 0x000D;
/// PtypString8.
pub const PT_STRING8: u16 = 0x001E;
/// PtypString (UTF-16LE).
pub const PT_STRING: u16 = 0x001F;
/// PtypTime.
pub const PT_TIME: u16 = 0x0040;
/// PtypGuid.
pub const PT_GUID: u16 = 0x0048;
/// PtypBinary.
pub const PT_BINARY: u16 = 0x0102;
