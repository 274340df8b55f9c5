//! A plain dump as `psql` would read it: what in it is data, what is SQL, and what is neither.
//!
//! `psql` takes a backslash anywhere outside quotes for a command of its own, and `\!` is a shell: whoever can name an object in the database
//! that was dumped, or change a dump, could run programs where it is restored (CVE-2025-8714). So a dump passes [`Script`] on
//! its way to `psql`, which follows `psql`'s own scanner (`psqlscan.l`) byte by byte and refuses
//!
//! - every backslash outside quotes and outside the data of a `COPY`;
//! - `COPY` in any form but the one that `pg_dump` writes, `COPY name (columns) FROM stdin;` at the end of its line: another form
//!   could read files, run programs, or hide where its data ends;
//! - whatever begins or ends a transaction: the restore's own must be the only one. (`pg_dump` writes `BEGIN;` and `COMMIT;` around large objects;
//!   these two are left out.)
//!
//! `\restrict` and `\unrestrict`, which newer `pg_dump`s write themselves, are left out too; a `psql` that knows them gets one from the restore,
//! which is a second fence. Of an older `psql` more is demanded (`strict`): nothing may depend on settings by which a
//! running statement could change how `psql` reads the next.
//!
//! This keeps a dump from running programs through `psql`. It does not make its SQL harmless: that runs with the rights of
//! the configured user, who for that reason should not be a superuser.
//!
//! As a dump goes by, the rows of each `COPY` are counted: exactly, in the very data that was dumped, at the cost of looking for line ends.

pub(super) use copy::{Rows, identifier, table_of};
use memchr::{memchr, memchr2};

use super::TableRows;

mod copy;

/// A `COPY` statement: 1,600 columns are the most a table can have, with names of 63 bytes, quoted.
const LONGEST_COPY: usize = 256 * 1024;

/// A line of `\restrict`.
const LONGEST_RESTRICT: usize = 256;

/// What may stand between `BEGIN` and `;`.
const LONGEST_HELD: usize = 64;

/// Longer words are no keywords of interest.
const LONGEST_WORD: usize = 32;

/// Variables that `psql` sets itself to what others may have chosen; unquoted names in upper case are nothing `pg_dump` writes.
const VARIABLES: [&str; 4] = ["DBNAME", "USER", "HOST", "PORT"];

/// Why a dump is refused, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::data) struct Refused {
    pub line: u64,
    pub why: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the dump is refused at line {}: {}", self.line, self.why)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum At {
    Sql,
    LineComment,
    BlockComment {
        depth: u32,
        before: u8,
    },
    /// `escapes`: a backslash takes the next byte's meaning. `odd`: so many backslashes came just now.
    Quote {
        escapes: bool,
        odd: bool,
    },
    /// After the quote that may have ended one: another one right here is a quote in it.
    QuoteEnd {
        escapes: bool,
    },
    DoubleQuote,
    /// After `$`, with the tag so far.
    DollarMaybe(Vec<u8>),
    /// `$tag$`, and how much of it has just been seen.
    Dollar {
        tag: Vec<u8>,
        seen: usize,
    },
    /// A line of `\restrict` or `\unrestrict`, so far.
    Restrict(Vec<u8>),
    /// The rest of the line of a `COPY`.
    AfterCopy,
    Data(Rows),
}

/// Follows a dump.
#[derive(Debug)]
pub(in crate::data) struct Script {
    at: At,
    strict: bool,
    line: u64,
    /// The word that is just being read; empty between words.
    word: Vec<u8>,
    /// It began with a digit, or with `$`: no word.
    number: bool,
    /// The byte before, outside quotes.
    before: u8,
    /// The word was just after a single colon.
    colon: bool,
    /// An `E''` ended, and since then there was nothing but white space, with a line end or without: another quote may go on with it.
    escaped: Option<bool>,
    statement: Statement,
    /// Output that waits until it is known whether the statement is wanted.
    held: Option<Vec<u8>>,
    tables: Vec<TableRows>,
}

#[derive(Debug, Default)]
struct Statement {
    begun: bool,
    words: usize,
    /// First letters of the first words, where they are those of `CREATE OR REPLACE FUNCTION` or `PROCEDURE`.
    firsts: [u8; 4],
    parens: u32,
    /// Of `BEGIN ATOMIC`, and of `CASE` in it.
    begins: u32,
    /// The text so far, of a `COPY`.
    copy: Option<Vec<u8>>,
}

type Taken<T> = Result<T, Refused>;

impl Script {
    /// `strict`: for a `psql` without `\restrict`.
    pub fn new(strict: bool) -> Self {
        Self {
            at: At::Sql,
            strict,
            line: 1,
            word: Vec::new(),
            number: false,
            before: b'\n',
            colon: false,
            escaped: None,
            statement: Statement::default(),
            held: None,
            tables: Vec::new(),
        }
    }

    /// Takes the next bytes, and appends to `out` what `psql` is to get of them.
    pub fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Taken<()> {
        if memchr(0, bytes).is_some() {
            return Err(self.refuse("there is a zero byte in it, which no dump in plain text has"));
        }
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            let used = match &mut self.at {
                At::Data(rows) => {
                    let before = rows.rows;
                    let used = rows.take(rest);
                    self.line += rows.rows - before + u64::from(rows.ended);
                    out.extend_from_slice(&rest[..used]);
                    if rows.ended {
                        self.end_of_data();
                    }
                    used
                }
                // What is long: strings of large objects, bodies of functions.
                At::Quote { escapes: false, odd } => {
                    let used = memchr(b'\'', rest).unwrap_or(rest.len());
                    *odd = trailing_backslashes(&rest[..used], *odd);
                    self.keep(&rest[..used], out);
                    if used == 0 { self.step(byte, out)? } else { used }
                }
                At::LineComment => {
                    let used = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                    self.keep(&rest[..used], out);
                    if used == 0 { self.step(byte, out)? } else { used }
                }
                _ => self.step(byte, out)?,
            };
            rest = &rest[used..];
            if self.statement.copy.as_ref().is_some_and(|copy| copy.len() > LONGEST_COPY) {
                return Err(self.refuse("there is a `COPY` in it that is not of the form `pg_dump` writes"));
            }
        }
        Ok(())
    }

    /// The rows of each table, in the order of the dump.
    pub fn finish(mut self) -> Taken<Vec<TableRows>> {
        self.end_word(&mut Vec::new())?;
        match self.at {
            At::Sql | At::LineComment | At::QuoteEnd { .. } if !self.statement.begun => Ok(self.tables),
            _ => Err(self.refuse("it ends in the middle of a statement")),
        }
    }

    fn refuse(&self, why: impl Into<String>) -> Refused {
        Refused { line: self.line, why: why.into() }
    }

    /// To the output, or to what is held back.
    fn keep(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.line += memchr::memchr_iter(b'\n', bytes).count() as u64;
        if let Some(copy) = &mut self.statement.copy {
            copy.extend_from_slice(bytes);
        }
        match &mut self.held {
            Some(held) => held.extend_from_slice(bytes),
            None => out.extend_from_slice(bytes),
        }
    }

    /// One byte, unless it has to be looked at again in another state: then none.
    fn step(&mut self, byte: u8, out: &mut Vec<u8>) -> Taken<usize> {
        match &mut self.at {
            At::Sql => return self.sql(byte, out),
            At::LineComment => {
                (self.at, self.before) = (At::Sql, b' ');
                return Ok(0);
            }
            At::BlockComment { depth, before } => {
                let pair = (*before, byte);
                *before = byte;
                if pair == (b'*', b'/') || pair == (b'/', b'*') {
                    *before = 0;
                    *depth = if byte == b'/' { *depth - 1 } else { *depth + 1 };
                    if *depth == 0 {
                        (self.at, self.before) = (At::Sql, b' ');
                    }
                }
            }
            At::Quote { escapes, odd } => {
                if byte == b'\'' && !(*escapes && *odd) {
                    if *odd && self.strict {
                        return Err(self.refuse(
                            "a string ends with a backslash, which this `psql` could be made to read in two ways: use a \
                             newer minor release of the PostgreSQL tools",
                        ));
                    }
                    self.at = At::QuoteEnd { escapes: *escapes };
                } else {
                    *odd = byte == b'\\' && !*odd;
                }
            }
            At::QuoteEnd { escapes } => {
                if byte != b'\'' {
                    self.escaped = escapes.then_some(false);
                    (self.at, self.before) = (At::Sql, b'\'');
                    return Ok(0);
                }
                self.at = At::Quote { escapes: *escapes, odd: false };
            }
            At::DoubleQuote => {
                if byte == b'"' {
                    (self.at, self.before) = (At::Sql, b'"');
                }
            }
            At::DollarMaybe(tag) => {
                if byte == b'$' {
                    let tag = [b"$", &tag[..], b"$"].concat();
                    self.at = At::Dollar { tag, seen: 0 };
                } else if is_word_start(byte) || (byte.is_ascii_digit() && !tag.is_empty()) {
                    tag.push(byte);
                } else {
                    // No quote after all: what was taken for a tag is a word, or a parameter's number.
                    self.word = std::mem::take(tag);
                    self.number = self.word.is_empty();
                    (self.at, self.before) = (At::Sql, b'$');
                    return Ok(0);
                }
            }
            At::Dollar { tag, seen } => {
                // A dollar is nowhere in a tag but at its ends.
                *seen = if byte == tag[*seen] { *seen + 1 } else { usize::from(byte == b'$') };
                if *seen == tag.len() {
                    (self.at, self.before) = (At::Sql, b'$');
                }
            }
            At::Restrict(line) => {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > LONGEST_RESTRICT {
                        return Err(self.refuse("there is a command of `psql` in it"));
                    }
                    return Ok(1);
                }
                let words = std::str::from_utf8(line).unwrap_or_default().trim_end_matches('\r').split_once(' ');
                let good = words.is_some_and(|(command, key)| {
                    matches!(command, "\\restrict" | "\\unrestrict")
                        && !key.is_empty()
                        && key.bytes().all(|b| b.is_ascii_alphanumeric())
                });
                if !good {
                    return Err(self.refuse("there is a command of `psql` in it"));
                }
                (self.at, self.before) = (At::Sql, b'\n');
            }
            At::AfterCopy => match byte {
                b'\n' => self.at = At::Data(Rows::default()),
                b' ' | b'\t' | b'\r' => {}
                _ => return Err(self.refuse("something follows a `COPY` on its line")),
            },
            // Taken as a whole by `take`.
            At::Data(_) => {}
        }
        self.keep(&[byte], out);
        Ok(1)
    }

    fn sql(&mut self, byte: u8, out: &mut Vec<u8>) -> Taken<usize> {
        if is_word_start(byte) || (!self.word.is_empty() && (byte.is_ascii_digit() || byte == b'$')) {
            return self.letter(byte, out);
        }
        // Versions of `psql` do not agree where such a number ends.
        if matches!(byte, b'\'' | b'$') && self.number {
            return Err(self.refuse("a string follows a number without a space"));
        }
        let escapes = self.word.eq_ignore_ascii_case(b"e");
        self.end_word(out)?;
        self.number = byte.is_ascii_digit() || (byte == b'.' && self.number);
        let pair = (std::mem::replace(&mut self.before, byte), byte);
        // One hyphen is no comment, and then nothing goes on.
        let goes_on = self.escaped.take().filter(|_| pair.0 != b'-' || byte == b'-');
        match byte {
            b'\\' if !self.statement.begun && pair.0 == b'\n' => {
                self.at = At::Restrict(vec![byte]);
                return Ok(1);
            }
            b'\\' => return Err(self.refuse("there is a command of `psql` in it")),
            b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c => {
                self.escaped = goes_on.map(|line_end| line_end || matches!(byte, b'\n' | b'\r'));
                // What waits is one word, of which nothing is known before its end.
                self.keep(&[byte], out);
                return self.held_so_far();
            }
            b'-' if pair.0 == b'-' => {
                self.escaped = goes_on;
                self.no_copy()?;
                self.at = At::LineComment;
            }
            b'*' if pair.0 == b'/' => {
                self.no_copy()?;
                self.at = At::BlockComment { depth: 1, before: 0 };
            }
            b'\'' => {
                self.statement.begun = true;
                self.at = At::Quote { escapes: escapes || goes_on == Some(true), odd: false };
            }
            b'"' => {
                self.statement.begun = true;
                self.at = At::DoubleQuote;
            }
            b'$' => {
                self.statement.begun = true;
                self.at = At::DollarMaybe(Vec::new());
            }
            b';' if self.statement.parens == 0 && self.statement.begins == 0 => return self.end_statement(out),
            b';' if self.strict && self.statement.begins > 0 => {
                return Err(self.refuse("a function has its body in SQL, which needs a newer `psql`"));
            }
            b'-' => self.escaped = goes_on,
            // What may be the first byte of a comment begins no statement; where it is not, it is an error anyway.
            b'/' => {}
            _ => {
                self.statement.begun = true;
                match byte {
                    b'(' => self.statement.parens += 1,
                    b')' => self.statement.parens = self.statement.parens.saturating_sub(1),
                    _ => {}
                }
            }
        }
        if self.held.is_some() {
            return Err(self.refuse("there is a command in it that begins or ends a transaction"));
        }
        self.keep(&[byte], out);
        Ok(1)
    }

    /// Of a word. A statement's first is held back until it is known.
    fn letter(&mut self, byte: u8, out: &mut Vec<u8>) -> Taken<usize> {
        if self.word.is_empty() {
            if self.held.is_some() {
                return Err(self.refuse("there is a command in it that begins or ends a transaction"));
            }
            self.colon = self.before == b':';
            self.escaped = None;
            if !self.statement.begun {
                self.statement.begun = true;
                self.held = Some(Vec::new());
            }
        }
        if self.word.len() < LONGEST_WORD {
            self.word.push(byte);
        } else {
            self.release(out);
        }
        self.before = byte;
        self.keep(&[byte], out);
        Ok(1)
    }

    /// What was held back is wanted.
    fn release(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held.take().unwrap_or_default());
    }

    fn no_copy(&self) -> Taken<()> {
        if self.statement.copy.is_some() {
            return Err(self.refuse("there is a comment in a `COPY`"));
        }
        Ok(())
    }

    fn held_so_far(&self) -> Taken<usize> {
        match &self.held {
            Some(held) if held.len() > LONGEST_HELD => {
                Err(self.refuse("there is a command in it that begins or ends a transaction"))
            }
            _ => Ok(1),
        }
    }

    /// The word, if there is one, is complete.
    fn end_word(&mut self, out: &mut Vec<u8>) -> Taken<()> {
        if self.word.is_empty() {
            return Ok(());
        }
        let word = std::mem::take(&mut self.word);
        if std::mem::take(&mut self.colon) && VARIABLES.iter().any(|name| name.as_bytes() == word) {
            return Err(self.refuse("there is a variable of `psql` in it"));
        }
        let word = word.to_ascii_lowercase();
        let nth = self.statement.words;
        self.statement.words += 1;
        if nth == 0 {
            self.first_word(&word, out)?;
        }
        self.track_body(&word, nth);
        Ok(())
    }

    fn first_word(&mut self, word: &[u8], out: &mut Vec<u8>) -> Taken<()> {
        match word {
            // Goes on being held, to be left out.
            b"begin" | b"commit" => return Ok(()),
            b"start" | b"end" | b"rollback" | b"abort" | b"savepoint" | b"release" | b"prepare" => {
                return Err(self.refuse("there is a command in it that begins or ends a transaction"));
            }
            b"copy" => self.statement.copy = self.held.clone(),
            _ => {}
        }
        self.release(out);
        Ok(())
    }

    /// As `psql` does from 14 on: semicolons in the SQL body of a function end no statement.
    fn track_body(&mut self, word: &[u8], nth: usize) {
        let statement = &mut self.statement;
        if nth < statement.firsts.len() && matches!(word, b"create" | b"function" | b"procedure" | b"or" | b"replace") {
            statement.firsts[nth] = word[0];
        }
        let function = matches!(statement.firsts, [b'c', b'f' | b'p', ..] | [b'c', b'o', b'r', b'f' | b'p']);
        if !function || statement.parens > 0 {
            return;
        }
        match word {
            b"begin" => statement.begins += 1,
            b"case" if statement.begins > 0 => statement.begins += 1,
            b"end" => statement.begins = statement.begins.saturating_sub(1),
            _ => {}
        }
    }

    fn end_statement(&mut self, out: &mut Vec<u8>) -> Taken<usize> {
        let statement = std::mem::take(&mut self.statement);
        // `BEGIN` or `COMMIT` and nothing else: with the semicolon it is left out.
        if self.held.take().is_some() {
            return Ok(1);
        }
        self.keep(b";", out);
        if let Some(copy) = statement.copy {
            let Some(name) = table_of(&copy) else {
                return Err(self.refuse("there is a `COPY` in it that is not of the form `pg_dump` writes"));
            };
            self.tables.push(TableRows { name, rows: 0 });
            self.at = At::AfterCopy;
        }
        Ok(1)
    }

    fn end_of_data(&mut self) {
        if let At::Data(rows) = std::mem::replace(&mut self.at, At::Sql)
            && let Some(table) = self.tables.last_mut()
        {
            table.rows = rows.rows;
        }
        self.before = b'\n';
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

/// Whether `bytes`, after so many, end with an odd number of backslashes.
fn trailing_backslashes(bytes: &[u8], odd: bool) -> bool {
    let count = bytes.iter().rev().take_while(|byte| **byte == b'\\').count();
    (count % 2 == 1) != (odd && count == bytes.len())
}

#[cfg(test)]
mod tests;
