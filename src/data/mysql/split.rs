//! A dump's text, cut into statements as the client program cuts it, a chunk at a time.
//!
//! What stands in quotes or comments ends no statement; a backslash escapes within strings unless the session's `sql_mode` has
//! `NO_BACKSLASH_ESCAPES` (whoever listens says so); `DELIMITER` lines are obeyed and told to nobody. Comments before a statement are
//! dropped, those within it stay: they are part of a routine's body. `/*!40101 … */` is code, unless its version is one that no server
//! has (`/*!999999\- enable the sandbox mode */`, an order to the client).
//!
//! Rows are not held: once the head of an `INSERT` has been heard, the rest of it passes in pieces, and must then be a list of rows of literals,
//! which is how both dump programs write them. That makes the count of rows exact, and leaves a forged dump no place for an
//! expression. All other statements are held whole, up to [`LONGEST`].

/// A statement that is no `INSERT` and longer than this is refused, in bytes.
pub(super) const LONGEST: usize = 16 * 1024 * 1024;

/// How far ahead a decision may have to look, in bytes.
const AHEAD: usize = 16;

/// The delimiters that the dump programs use.
const DELIMITERS: [&[u8]; 2] = [b";", b";;"];

/// Why a dump cannot be what it should be. Fit for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub(super) struct Refused {
    pub line: u64,
    pub why: String,
}

/// Who is told of what a dump says.
pub(super) trait Listen {
    /// A whole statement without its delimiter, which is `;;` where `double`. Says whether backslashes are plain letters from here on, if
    /// the statement decides that.
    fn statement(&mut self, text: &[u8], double: bool) -> Result<Option<bool>, String>;
    /// `INSERT INTO … VALUES`.
    fn insert(&mut self, head: &[u8]) -> Result<(), String>;
    /// More of that statement, in pieces of any size, with the rows that begin in it.
    fn rows(&mut self, text: &[u8], begun: u64) -> Result<(), String>;
    /// The end of that statement.
    fn inserted(&mut self) -> Result<(), String>;
    /// The text of a `-- ` comment before a statement, cut short if it is long.
    fn comment(&mut self, text: &[u8]) -> Result<(), String>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Code,
    Quote(u8),
    Escaped(u8),
    LineComment,
    BlockComment,
    /// Behind `VALUES`: between rows, or in one.
    Rows {
        inside: bool,
    },
}

#[derive(Debug)]
pub(super) struct Splitter {
    mode: Mode,
    /// Bytes that cannot be judged before more come.
    carry: Vec<u8>,
    /// The statement so far; of a line's comment before a statement, its beginning.
    text: Vec<u8>,
    /// Where a quote or comment that is part of a row ends up.
    in_rows: bool,
    double: bool,
    plain_backslash: bool,
    line: u64,
}

impl Default for Splitter {
    fn default() -> Self {
        Self {
            mode: Mode::Code,
            carry: Vec::new(),
            text: Vec::new(),
            in_rows: false,
            double: false,
            plain_backslash: false,
            line: 1,
        }
    }
}

impl Splitter {
    pub fn feed(&mut self, chunk: &[u8], listen: &mut impl Listen) -> Result<(), Refused> {
        let whole;
        let bytes = if self.carry.is_empty() {
            chunk
        } else {
            self.carry.extend_from_slice(chunk);
            whole = std::mem::take(&mut self.carry);
            &whole
        };
        let used = self.take(bytes, false, listen)?;
        self.carry = bytes[used..].to_vec();
        Ok(())
    }

    /// The end of the dump.
    pub fn finish(mut self, listen: &mut impl Listen) -> Result<(), Refused> {
        let rest = std::mem::take(&mut self.carry);
        self.take(&rest, true, listen)?;
        if self.mode == Mode::LineComment && is_blank_before(&self.text) {
            return Ok(());
        }
        if self.mode != Mode::Code || self.text.iter().any(|b| !b.is_ascii_whitespace()) {
            return Err(self.refused("the dump ends in the middle of a statement"));
        }
        Ok(())
    }

    fn refused(&self, why: impl Into<String>) -> Refused {
        Refused { line: self.line, why: why.into() }
    }

    fn told<T>(&self, said: Result<T, String>) -> Result<T, Refused> {
        said.map_err(|why| self.refused(why))
    }

    /// How many bytes were used up.
    fn take(&mut self, bytes: &[u8], last: bool, listen: &mut impl Listen) -> Result<usize, Refused> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let used = match self.mode {
                // Nothing to look ahead for.
                Mode::Quote(quote) => self.quoted(rest, quote, listen)?,
                Mode::Escaped(quote) => {
                    self.keep(&rest[..1], listen)?;
                    self.mode = Mode::Quote(quote);
                    1
                }
                _ if rest.len() < AHEAD && !last => break,
                Mode::Code => self.code(rest, listen)?,
                Mode::LineComment => self.line_comment(rest, listen)?,
                Mode::BlockComment => self.block_comment(rest, listen)?,
                Mode::Rows { inside } => self.rows(rest, inside, last, listen)?,
            };
            self.line += bytes[at..at + used].iter().map(|b| u64::from(*b == b'\n')).sum::<u64>();
            at += used;
        }
        Ok(at)
    }

    /// What belongs to the statement.
    fn keep(&mut self, piece: &[u8], listen: &mut impl Listen) -> Result<(), Refused> {
        if self.in_rows {
            let said = listen.rows(piece, 0);
            return self.told(said);
        }
        self.text.extend_from_slice(piece);
        if self.text.len() > LONGEST {
            return Err(self.refused(format!("a statement is longer than {LONGEST} bytes")));
        }
        Ok(())
    }

    fn quoted(&mut self, rest: &[u8], quote: u8, listen: &mut impl Listen) -> Result<usize, Refused> {
        let escapes = quote != b'`' && !self.plain_backslash;
        let end = rest.iter().position(|b| *b == quote || (escapes && *b == b'\\'));
        let used = end.map_or(rest.len(), |end| end + 1);
        self.keep(&rest[..used], listen)?;
        if let Some(end) = end {
            // A doubled quote ends the string and begins it again, which comes to the same.
            self.mode = match rest[end] {
                b'\\' => Mode::Escaped(quote),
                _ if self.in_rows => Mode::Rows { inside: true },
                _ => Mode::Code,
            };
        }
        Ok(used)
    }

    fn code(&mut self, rest: &[u8], listen: &mut impl Listen) -> Result<usize, Refused> {
        let between = self.text.is_empty();
        if between {
            if rest[0].is_ascii_whitespace() {
                return Ok(1);
            }
            if let Some(used) = self.delimiter(rest)? {
                return Ok(used);
            }
        }
        let delimiter = DELIMITERS[usize::from(self.double)];
        if rest.starts_with(delimiter) {
            let text = std::mem::take(&mut self.text);
            if !text.is_empty() {
                let said = listen.statement(&text, self.double);
                if let Some(plain) = self.told(said)? {
                    self.plain_backslash = plain;
                }
            }
            return Ok(delimiter.len());
        }
        match rest[0] {
            quote @ (b'\'' | b'"' | b'`') => self.mode = Mode::Quote(quote),
            b'#' => return Ok(self.begin_comment(Mode::LineComment, between, b"#")),
            b'-' if rest.starts_with(b"--") && rest.get(2).is_none_or(|b| b.is_ascii_whitespace()) => {
                return Ok(self.begin_comment(Mode::LineComment, between, b"--"));
            }
            b'/' if rest.starts_with(b"/*") && !is_code_comment(rest) => {
                return Ok(self.begin_comment(Mode::BlockComment, between, b"/*"));
            }
            b'v' | b'V' if self.ends_a_head(rest) => {
                self.text.extend_from_slice(&rest[..6]);
                let head = std::mem::take(&mut self.text);
                let said = listen.insert(&head);
                self.told(said)?;
                (self.mode, self.in_rows) = (Mode::Rows { inside: false }, true);
                return Ok(6);
            }
            _ => {}
        }
        self.keep(&rest[..1], listen)?;
        Ok(1)
    }

    /// A `DELIMITER` line, up to its end.
    fn delimiter(&mut self, rest: &[u8]) -> Result<Option<usize>, Refused> {
        const WORD: &[u8] = b"DELIMITER ";
        if !rest.get(..WORD.len()).is_some_and(|word| word.eq_ignore_ascii_case(WORD)) {
            return Ok(None);
        }
        // Its value fits in what is looked ahead.
        let value = &rest[WORD.len()..rest.len().min(AHEAD)];
        let Some(end) = value.iter().position(|b| *b == b'\n') else {
            return Err(self.refused("a `DELIMITER` that no dump program writes"));
        };
        match DELIMITERS.iter().position(|known| *known == value[..end].trim_ascii()) {
            Some(index) => self.double = index == 1,
            None => return Err(self.refused("a `DELIMITER` that no dump program writes")),
        }
        Ok(Some(WORD.len() + end))
    }

    /// A comment before a statement is no part of it, but is collected in the same place.
    fn begin_comment(&mut self, mode: Mode, between: bool, opening: &[u8]) -> usize {
        self.mode = mode;
        self.text.extend_from_slice(if between { &[BEFORE] } else { opening });
        opening.len()
    }

    fn line_comment(&mut self, rest: &[u8], listen: &mut impl Listen) -> Result<usize, Refused> {
        let end = rest.iter().position(|b| *b == b'\n');
        let used = end.unwrap_or(rest.len());
        self.comment_text(&rest[..used], listen)?;
        if end.is_some() {
            self.mode = Mode::Code;
            if is_blank_before(&self.text) {
                let text = std::mem::take(&mut self.text);
                let said = listen.comment(&text[1..]);
                self.told(said)?;
            }
        }
        // The end of the line is code again.
        Ok(used)
    }

    fn block_comment(&mut self, rest: &[u8], listen: &mut impl Listen) -> Result<usize, Refused> {
        if rest.starts_with(b"*/") {
            self.comment_text(b"*/", listen)?;
            self.mode = Mode::Code;
            if is_blank_before(&self.text) {
                self.text.clear();
            }
            return Ok(2);
        }
        self.comment_text(&rest[..1], listen)?;
        Ok(1)
    }

    fn comment_text(&mut self, piece: &[u8], listen: &mut impl Listen) -> Result<(), Refused> {
        const KEPT: usize = 256;
        if is_blank_before(&self.text) {
            let room = KEPT.saturating_sub(self.text.len());
            self.text.extend_from_slice(&piece[..piece.len().min(room)]);
            return Ok(());
        }
        self.keep(piece, listen)
    }

    /// Whether `VALUES` of an `INSERT` is what comes.
    fn ends_a_head(&self, rest: &[u8]) -> bool {
        let word = rest.get(..6).is_some_and(|word| word.eq_ignore_ascii_case(b"VALUES"));
        let alone = rest.get(6).is_none_or(|b| b.is_ascii_whitespace() || *b == b'(');
        let before = self.text.last().is_some_and(|b| b.is_ascii_whitespace() || *b == b')');
        word && alone && before && self.text.get(..6).is_some_and(|word| word.eq_ignore_ascii_case(b"INSERT"))
    }

    /// Literals, as far as they go; the ends of rows and of the statement.
    fn rows(&mut self, rest: &[u8], inside: bool, last: bool, listen: &mut impl Listen) -> Result<usize, Refused> {
        let literal = |b: &u8| {
            b.is_ascii_alphanumeric() || matches!(b, b',' | b'.' | b'-' | b'+' | b'_' | b' ' | b'\n' | b'\r' | b'\t')
        };
        let between = |b: &u8| matches!(b, b',' | b' ' | b'\n' | b'\r' | b'\t');
        let plain = rest.iter().position(|b| if inside { !literal(b) } else { !between(b) }).unwrap_or(rest.len());
        // What a dash is depends on what follows it.
        let rest = if plain == rest.len() && !last { rest.strip_suffix(b"-").unwrap_or(rest) } else { rest };
        let plain = plain.min(rest.len());
        if rest[..plain].windows(2).any(|pair| pair == b"--") {
            return Err(self.refused("a row has a comment in it"));
        }
        let Some(next) = rest.get(plain) else {
            let said = listen.rows(rest, 0);
            return self.told(said).map(|()| rest.len());
        };
        let used = plain + 1;
        match (inside, *next) {
            (false, b'(') => self.mode = Mode::Rows { inside: true },
            (true, b')') => self.mode = Mode::Rows { inside: false },
            (true, quote @ (b'\'' | b'"')) => self.mode = Mode::Quote(quote),
            (false, b';') if !self.double => {
                let said = listen.rows(&rest[..plain], 0).and_then(|()| listen.inserted());
                self.told(said)?;
                (self.mode, self.in_rows) = (Mode::Code, false);
                return Ok(used);
            }
            _ => return Err(self.refused("a row has something else than plain values in it")),
        }
        let begun = u64::from(!inside && *next == b'(');
        let said = listen.rows(&rest[..used], begun);
        self.told(said)?;
        Ok(used)
    }
}

/// The first byte of what is collected of a comment before a statement. No statement begins with it.
const BEFORE: u8 = 0;

fn is_blank_before(text: &[u8]) -> bool {
    text.first() == Some(&BEFORE)
}

/// `/*!`, `/*M!`, `/*+`: code for the server, if its version is one that a server can have.
fn is_code_comment(rest: &[u8]) -> bool {
    let Some(rest) = rest.strip_prefix(b"/*") else { return false };
    let version = match rest {
        [b'M', b'!', version @ ..] | [b'!', version @ ..] => version,
        [b'+', ..] => return true,
        _ => return false,
    };
    let digits = version.iter().take_while(|b| b.is_ascii_digit()).count();
    &version[..digits.min(6)] != b"999999"
}

#[cfg(test)]
#[path = "split_test.rs"]
mod tests;
