//! Compressed RTF ([MS-OXRTFCP]): the engine keeps it as it is, other readers show it inflated.

const START: &[u8] = b"{\\rtf1\\ansi\\mac\\deff0\\deftab720{\\fonttbl;}{\\f0\\fnil \\froman \\fswiss \
\\fmodern \\fscript \\fdecor MS Sans SerifSymbolArialTimes New RomanCourier{\\colortbl\\red0\\green0\
\\blue0\r\n\\par \\pard\\plain\\f0\\fs20\\b\\i\\u\\tab\\tx";

/// Whether the text is stored uncompressed ("MELA").
pub fn is_stored(packed: &[u8]) -> bool {
    packed.get(8..12) == Some(b"MELA")
}

/// The RTF text; `None` where it is not whole.
pub fn inflate(packed: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u32::from_le_bytes(packed.get(at..at + 4)?.try_into().ok()?));
    let size = word(4)? as usize;
    let rest = packed.get(16..)?;
    if is_stored(packed) {
        // Stored as it is; one writer counts the header in.
        return rest.get(..size.min(rest.len())).map(<[u8]>::to_vec);
    }
    assert_eq!(START.len(), 207);
    let mut window = [b' '; 4096];
    window[..START.len()].copy_from_slice(START);
    let (mut at, mut input, mut out) = (START.len(), rest.iter().copied(), Vec::new());
    loop {
        let flags = input.next()?;
        for bit in 0..8 {
            if flags >> bit & 1 == 0 {
                let byte = input.next()?;
                out.push(byte);
                window[at] = byte;
                at = (at + 1) % 4096;
                continue;
            }
            let pair = u16::from_be_bytes([input.next()?, input.next()?]);
            let (from, len) = (usize::from(pair >> 4), usize::from(pair & 0xF) + 2);
            if from == at {
                out.truncate(size);
                return Some(out);
            }
            for i in 0..len {
                let byte = window[(from + i) % 4096];
                out.push(byte);
                window[at] = byte;
                at = (at + 1) % 4096;
            }
        }
        // Some writers leave the end mark out.
        if out.len() >= size {
            out.truncate(size);
            return Some(out);
        }
    }
}
