//! The cells of a table's row, from the properties of the object that the row stands for
//! ([MS-PST] 2.4.4.2, 2.4.4.4).
//!
//! A table holds what it has a column for, by exact tag: id and type. Text is where types differ
//! between files: the tables of ANSI stores have PtypString8 columns, those of Unicode stores
//! PtypString, while an object from the other kind of store keeps the type that it came with: what a
//! message says must not change by being carried. So a text cell of the other type is filled by
//! converting, where that is exact in the code page that the object names (plain ASCII where it names
//! none), and else stays empty: a row never says something else than its object.

use crate::ltp::{CodePage, PropBag, PropTag, PropType, PropValue, Text};

use super::tags;

/// The code page of a message's 8-bit text: PidTagMessageCodepage ([MS-OXCMSG] 2.2.1.4), which says just
/// that, else the Windows code page of the language that PidTagInternetCodepage tells
/// ([MS-OXCMAIL] 2.1.3.2); that one is the code page of its MIME form and not itself meant.
#[must_use]
pub fn code_page(props: &PropBag) -> Option<CodePage> {
    let page = |id: u16| {
        let page = props.i32(id).filter(|page| *page > 0);
        page.map(i32::cast_unsigned)
    };
    match page(tags::MESSAGE_CODEPAGE) {
        Some(page) => Some(CodePage(page)),
        None => CodePage::of_internet(page(tags::INTERNET_CODEPAGE)?),
    }
}

/// The cells of a row: the properties that the table has a column for. Row id and version are the
/// table's own.
#[must_use]
pub fn cells(props: &PropBag, columns: &[PropTag]) -> PropBag {
    cells_in(props, columns, code_page(props))
}

/// As [`cells`], for what has no code page of its own: recipients and attachments of a message.
#[must_use]
pub fn cells_in(props: &PropBag, columns: &[PropTag], page: Option<CodePage>) -> PropBag {
    columns
        .iter()
        .filter(|tag| !matches!(tag.id(), tags::LTP_ROW_ID | tags::LTP_ROW_VER))
        .filter_map(|tag| cell(props, *tag, page))
        .collect()
}

/// One cell; `None` where it stays empty.
fn cell(props: &PropBag, column: PropTag, page: Option<CodePage>) -> Option<PropValue> {
    let value = props.get(column.id())?;
    if value.tag == column {
        return Some(value.clone());
    }
    // A code page without a name in ours reads and writes ASCII alone.
    let page = page.unwrap_or(CodePage(0));
    let exact = |text: Text| text.lossless.then_some(text.text);
    match (value.tag.prop_type(), column.prop_type()) {
        (PropType::STRING8, PropType::UNICODE) => {
            let text = exact(page.decode(value.as_bytes()?))?;
            Some(PropValue::string(column.id(), &text))
        }
        (PropType::UNICODE, PropType::STRING8) => {
            let text = exact(value.as_text()?)?;
            Some(PropValue::new(column, page.encode(&text)?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT8: PropTag = PropTag(0x0037_001E);
    const SUBJECT: PropTag = PropTag(0x0037_001F);

    fn bag(subject: PropValue, page: Option<i32>) -> PropBag {
        let page = page.map(|p| PropValue::i32(tags::MESSAGE_CODEPAGE, p));
        PropBag::from_iter([subject].into_iter().chain(page))
    }

    #[test]
    fn text_of_the_other_type_is_converted_where_that_is_exact() {
        let stored = |props: &PropBag, column: PropTag| {
            let row = cells(props, &[column]);
            row.get_tag(column).map(|v| v.as_bytes().unwrap().to_vec())
        };
        let utf16 = |s: &str| crate::ltp::utf16le(s);
        let wide = |s: &str, page| bag(PropValue::string(0x37, s), page);
        let narrow = |b: &[u8], page| bag(PropValue::new(SUBJECT8, b), page);

        assert_eq!(stored(&wide("plain", None), SUBJECT8).unwrap(), b"plain");
        assert_eq!(
            stored(&wide("削除", Some(932)), SUBJECT8).unwrap(),
            b"\x8D\xED\x8F\x9C"
        );
        assert_eq!(stored(&wide("削除", Some(1252)), SUBJECT8), None);
        assert_eq!(stored(&wide("ä", None), SUBJECT8), None);
        assert_eq!(
            stored(&narrow(b"plain", None), SUBJECT).unwrap(),
            utf16("plain")
        );
        assert_eq!(
            stored(&narrow(b"\x8D\xED", Some(932)), SUBJECT).unwrap(),
            utf16("削")
        );
        assert_eq!(stored(&narrow(b"\xE4", None), SUBJECT), None);
        assert_eq!(stored(&narrow(b"\x8D", Some(932)), SUBJECT), None);
        // A column of the property's own type holds its bytes, whatever they are.
        assert_eq!(stored(&narrow(b"\x8D", None), SUBJECT8).unwrap(), b"\x8D");
        // Nothing but text is converted.
        let number = bag(PropValue::i32(0x37, 7), None);
        assert_eq!(stored(&number, SUBJECT), None);
    }
}
