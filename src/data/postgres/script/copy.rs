//! One `COPY … FROM stdin`: which table its statement names, and how many rows follow it.

use memchr::memchr;

/// The data of one `COPY`, in PostgreSQL's text format: a row is a line, and a line `\.` is the end.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::data::postgres) struct Rows {
    pub rows: u64,
    /// The end was seen: what follows is not data.
    pub ended: bool,
    line: InLine,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum InLine {
    #[default]
    Start,
    Backslash,
    Dot,
    Return,
    Middle,
}

impl Rows {
    /// Takes bytes up to the end of the data. How many.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if self.line == InLine::Middle {
                let Some(end) = memchr(b'\n', &bytes[at..]) else { return bytes.len() };
                at += end + 1;
                self.rows += 1;
                self.line = InLine::Start;
                continue;
            }
            at += 1;
            self.line = match (self.line, byte) {
                (InLine::Dot | InLine::Return, b'\n') => {
                    self.ended = true;
                    return at;
                }
                (_, b'\n') => {
                    self.rows += 1;
                    InLine::Start
                }
                (InLine::Start, b'\\') => InLine::Backslash,
                (InLine::Backslash, b'.') => InLine::Dot,
                (InLine::Dot, b'\r') => InLine::Return,
                _ => InLine::Middle,
            };
        }
        at
    }
}

/// The table of `COPY name (columns) FROM stdin`, as it is written; `None` for anything else.
pub(in crate::data::postgres) fn table_of(statement: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(statement).ok()?;
    let mut rest = text.strip_prefix("COPY ")?;
    let whole = rest;
    loop {
        rest = identifier(rest)?;
        match rest.strip_prefix('.') {
            Some(after) => rest = after,
            None => break,
        }
    }
    let name = &whole[..whole.len() - rest.len()];
    rest = rest.strip_prefix(' ')?;
    if let Some(columns) = rest.strip_prefix('(') {
        rest = columns;
        loop {
            rest = identifier(rest)?;
            match rest.strip_prefix(", ") {
                Some(after) => rest = after,
                None => break,
            }
        }
        rest = rest.strip_prefix(')')?;
    }
    (rest == " FROM stdin").then(|| name.to_owned())
}

/// What follows an identifier, plain or quoted.
pub(in crate::data::postgres) fn identifier(text: &str) -> Option<&str> {
    if let Some(mut rest) = text.strip_prefix('"') {
        loop {
            rest = &rest[rest.find('"')? + 1..];
            match rest.strip_prefix('"') {
                Some(after) => rest = after,
                None => return Some(rest),
            }
        }
    }
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()));
    let end = end.unwrap_or(text.len());
    (end > 0).then(|| &text[end..])
}
