//! Output that comes in pieces, as lines.

use std::collections::VecDeque;

/// A line without an end is cut into pieces of this size, in bytes.
const LINE_PIECE: usize = 64 * 1024;

/// Puts pieces of one stream together to lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Hands each line that `piece` completes to `each`, without its end.
    pub(super) fn push(&mut self, piece: &[u8], mut each: impl FnMut(&str)) {
        let mut piece = piece;
        while let Some(end) = piece.iter().position(|b| *b == b'\n') {
            self.rest.extend_from_slice(&piece[..end]);
            piece = &piece[end + 1..];
            self.hand_over(&mut each);
        }
        self.rest.extend_from_slice(piece);
        while self.rest.len() > LINE_PIECE {
            let after = self.rest.split_off(LINE_PIECE);
            self.hand_over(&mut each);
            self.rest = after;
        }
    }

    /// The last line, where it had no end.
    pub(super) fn finish(mut self, mut each: impl FnMut(&str)) {
        if !self.rest.is_empty() {
            self.hand_over(&mut each);
        }
    }

    fn hand_over(&mut self, each: &mut impl FnMut(&str)) {
        let text = self.rest.strip_suffix(b"\r").unwrap_or(&self.rest);
        each(&String::from_utf8_lossy(text));
        self.rest.clear();
    }
}

/// The last lines of something.
#[derive(Debug)]
pub(super) struct Tail {
    limit: usize,
    lines: VecDeque<String>,
}

impl Tail {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, lines: VecDeque::new() }
    }

    pub(super) fn push(&mut self, line: &str) {
        if self.lines.len() == self.limit {
            self.lines.pop_front();
        }
        self.lines.push_back(line.to_owned());
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    pub(super) fn into_vec(self) -> Vec<String> {
        self.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for piece in ["on", "e\ntw", "o\r\n\n", "end"] {
            lines.push(piece.as_bytes(), |l| seen.push(l.to_owned()));
        }
        lines.push(&vec![b'x'; LINE_PIECE], |l| seen.push(l.len().to_string()));
        lines.finish(|l| seen.push(l.to_owned()));
        assert_eq!(seen, ["one", "two", "", "65536", "xxx"]);
    }
}
