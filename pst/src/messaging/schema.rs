//! Column sets of the template tables, and what belongs to a table alone.
//!
//! A new folder gets the columns of the file's own templates. These lists stand in where a file lacks
//! one, and make the templates of a new file: the columns that [MS-PST] asks for and those that
//! Outlook's own templates have beside them.

use crate::ltp::{PropTag, PropType};
use crate::{Nid, NidType};

/// NID_HIERARCHY_TABLE_TEMPLATE ([MS-PST] 2.4.4.4.1).
pub const HIERARCHY_TEMPLATE: Nid = Nid(0x60D);
/// NID_CONTENTS_TABLE_TEMPLATE ([MS-PST] 2.4.4.5.1).
pub const CONTENTS_TEMPLATE: Nid = Nid(0x60E);
/// NID_ASSOC_CONTENTS_TABLE_TEMPLATE ([MS-PST] 2.4.4.6.1).
pub const ASSOC_CONTENTS_TEMPLATE: Nid = Nid(0x60F);
/// NID_SEARCH_CONTENTS_TABLE_TEMPLATE ([MS-PST] 2.4.8.6.2.1).
pub const SEARCH_CONTENTS_TEMPLATE: Nid = Nid(0x610);

const HIERARCHY: [PropTag; 13] = [
    PropTag(0x0E30_0102),
    PropTag(0x0E33_0014),
    PropTag(0x0E34_0102),
    PropTag(0x0E38_0003),
    PropTag(0x3001_001F),
    PropTag(0x3602_0003),
    PropTag(0x3603_0003),
    PropTag(0x360A_000B),
    PropTag(0x3613_001F),
    PropTag(0x6635_0003),
    PropTag(0x6636_0003),
    PropTag(0x67F2_0003),
    PropTag(0x67F3_0003),
];

const CONTENTS: [PropTag; 28] = [
    PropTag(0x0017_0003),
    PropTag(0x001A_001F),
    PropTag(0x0036_0003),
    PropTag(0x0037_001F),
    PropTag(0x0039_0040),
    PropTag(0x0042_001F),
    PropTag(0x0057_000B),
    PropTag(0x0058_000B),
    PropTag(0x0070_001F),
    PropTag(0x0071_0102),
    PropTag(0x0E03_001F),
    PropTag(0x0E04_001F),
    PropTag(0x0E06_0040),
    PropTag(0x0E07_0003),
    PropTag(0x0E08_0003),
    PropTag(0x0E17_0003),
    PropTag(0x0E30_0102),
    PropTag(0x0E33_0014),
    PropTag(0x0E34_0102),
    PropTag(0x0E38_0003),
    PropTag(0x0E3C_0102),
    PropTag(0x0E3D_0102),
    PropTag(0x1097_0003),
    PropTag(0x3008_0040),
    PropTag(0x3013_0102),
    PropTag(0x65C6_0003),
    PropTag(0x67F2_0003),
    PropTag(0x67F3_0003),
];

const ASSOC_CONTENTS: [PropTag; 15] = [
    PropTag(0x001A_001F),
    PropTag(0x0E07_0003),
    PropTag(0x0E17_0003),
    PropTag(0x3001_001F),
    PropTag(0x67F2_0003),
    PropTag(0x67F3_0003),
    PropTag(0x6800_001F),
    PropTag(0x6803_000B),
    PropTag(0x6805_1003),
    PropTag(0x682F_001F),
    PropTag(0x7003_0003),
    PropTag(0x7004_0102),
    PropTag(0x7005_0102),
    PropTag(0x7006_001F),
    PropTag(0x7007_0003),
];

const SEARCH_CONTENTS: [PropTag; 19] = [
    PropTag(0x0017_0003),
    PropTag(0x001A_001F),
    PropTag(0x0036_0003),
    PropTag(0x0037_001F),
    PropTag(0x0042_001F),
    PropTag(0x0057_000B),
    PropTag(0x0058_000B),
    PropTag(0x0E03_001F),
    PropTag(0x0E04_001F),
    PropTag(0x0E05_001F),
    PropTag(0x0E06_0040),
    PropTag(0x0E07_0003),
    PropTag(0x0E08_0003),
    PropTag(0x0E17_0003),
    PropTag(0x0E2A_000B),
    PropTag(0x3008_0040),
    PropTag(0x67F1_0003),
    PropTag(0x67F2_0003),
    PropTag(0x67F3_0003),
];

const ATTACHMENTS: [PropTag; 6] = [
    PropTag(0x0E20_0003),
    PropTag(0x3704_001F),
    PropTag(0x3705_0003),
    PropTag(0x370B_0003),
    PropTag(0x67F2_0003),
    PropTag(0x67F3_0003),
];

const RECIPIENTS: [PropTag; 14] = [
    PropTag(0x0C15_0003),
    PropTag(0x0E0F_000B),
    PropTag(0x0FF9_0102),
    PropTag(0x0FFE_0003),
    PropTag(0x0FFF_0102),
    PropTag(0x3001_001F),
    PropTag(0x3002_001F),
    PropTag(0x3003_001F),
    PropTag(0x300B_0102),
    PropTag(0x3900_0003),
    PropTag(0x39FF_001F),
    PropTag(0x3A40_000B),
    PropTag(0x67F2_0003),
    PropTag(0x67F3_0003),
];

/// The default columns of a template table; none for a node that is no template.
#[must_use]
pub const fn columns(template: Nid) -> &'static [PropTag] {
    match template {
        HIERARCHY_TEMPLATE => &HIERARCHY,
        CONTENTS_TEMPLATE => &CONTENTS,
        ASSOC_CONTENTS_TEMPLATE => &ASSOC_CONTENTS,
        SEARCH_CONTENTS_TEMPLATE => &SEARCH_CONTENTS,
        Nid::ATTACHMENT_TABLE => &ATTACHMENTS,
        Nid::RECIPIENT_TABLE => &RECIPIENTS,
        _ => &[],
    }
}

/// Columns with text of this type in the place of PtypString.
#[must_use]
pub fn columns_as(columns: &[PropTag], text: PropType) -> Vec<PropTag> {
    let of = |tag: &PropTag| match tag.prop_type() {
        PropType::UNICODE => PropTag::new(tag.id(), text),
        _ => *tag,
    };
    columns.iter().map(of).collect()
}

/// The template of a folder's table, by the table's type.
#[must_use]
pub const fn template_of(kind: NidType) -> Nid {
    match kind {
        NidType::HIERARCHY_TABLE => HIERARCHY_TEMPLATE,
        NidType::ASSOC_CONTENTS_TABLE => ASSOC_CONTENTS_TEMPLATE,
        NidType::SEARCH_CONTENTS_TABLE => SEARCH_CONTENTS_TEMPLATE,
        _ => CONTENTS_TEMPLATE,
    }
}

/// Whether a column's value lives in the parent's table and not in the object ([MS-PST] 2.5.3.1):
/// PidTagMessageStatus (SPGET_MSGSTATUS) and the PidTagRepl* group (SPGET_TABLE_ONLY).
#[must_use]
pub const fn is_table_only(id: u16) -> bool {
    matches!(
        id,
        0x0E17 | 0x0E30 | 0x0E33 | 0x0E34 | 0x0E38 | 0x0E3C | 0x0E3D
    )
}
