//! Parts of the documents that tests hold to what the program does.

/// Holds the part of docs/`file` between `<!-- name -->` and `<!-- /name -->` to `expected`; with
/// `PSTSYNCD_BLESS=1` writes it. Returns the whole document.
pub fn section(file: &str, name: &str, expected: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/").to_owned() + file;
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let from = text.find(&begin).expect("the begin mark") + begin.len();
    let to = from + text[from..].find(&end).expect("the end mark");
    if std::env::var_os("PSTSYNCD_BLESS").is_some() {
        let text = format!("{}{expected}{}", &text[..from], &text[to..]);
        std::fs::write(&path, &text).unwrap();
        return text;
    }
    assert_eq!(
        &text[from..to],
        expected,
        "docs/{file}: run the test with PSTSYNCD_BLESS=1"
    );
    text
}
