//! What a statement of a dump does, and whether a dump of one database has such a statement.
//!
//! A dump is loaded into a database of its own, beside the one that is live. So it may make and fill tables, views, routines, triggers
//! and events by their plain names, and set variables of its session; it may not leave its database (`USE`, `CREATE DATABASE`, a
//! name with a dot), nor do what is no part of a dump (`GRANT`, `SELECT … INTO OUTFILE`, `SET GLOBAL`). Orders to the client program
//! (`\!`, `source`, `system`) begin no statement that is known here, so they never reach it; it is told to obey none besides.
//!
//! This keeps honest mistakes and crude forgeries away from the live data. It is no wall against SQL inside a
//! routine's body, which is whatever the routine's author wrote: what a dump can do at most is decided by the rights of the user that
//! it is loaded as.

/// What is to be done with a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Class {
    /// `SET …` of the session: whatever comes later depends on it.
    Session { plain_backslash: Option<bool> },
    /// A table or sequence is made, dropped or filled.
    Data,
    /// A table is made.
    Table(String),
    /// A view, trigger, routine or package is made or dropped.
    Code,
    /// An event is made or dropped.
    Event,
    /// The database's own character set, as an object was made under: the statement without the database's name.
    DatabaseDefault(String),
}

/// The table of an `INSERT`, from the text before its first row.
pub(super) fn inserts_into(head: &[u8]) -> Result<String, String> {
    let mut words = Words::new(head);
    words.expect("INSERT")?;
    words.expect("INTO")?;
    words.name()
}

/// # Errors
/// Why it has no place in a dump; for people.
pub(super) fn judge(text: &[u8]) -> Result<Class, String> {
    let mut words = Words::new(text);
    let first = words.word().ok_or_else(|| stranger(text))?;
    let class = match first.as_str() {
        "SET" => set(&mut words),
        "DROP" => drop_one(&mut words),
        "CREATE" => create(&mut words),
        "ALTER" => alter(&mut words),
        "DO" | "SELECT" => setval(&mut words),
        "LOCK" => words.expect("TABLES").and_then(|()| words.name()).map(|_| Class::Data),
        "UNLOCK" => words.expect("TABLES").map(|()| Class::Data),
        "COMMIT" => Ok(Class::Data),
        _ => Err(String::new()),
    };
    let class = class.map_err(|why| if why.is_empty() { stranger(text) } else { why })?;
    if words.doubtful() {
        return Err(format!("`{}` reads differently on different servers", beginning(text)));
    }
    Ok(class)
}

fn stranger(text: &[u8]) -> String {
    format!("`{}` is nothing that a dump of one database has in it", beginning(text))
}

fn beginning(text: &[u8]) -> String {
    const SHOWN: usize = 60;
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * SHOWN)]).replace(char::is_control, " ");
    text.chars().take(SHOWN).collect()
}

fn no() -> String {
    String::new()
}

/// Assignments of plain values and saved variables.
fn set(words: &mut Words<'_>) -> Result<Class, String> {
    let mut plain_backslash = None;
    let mut before = String::new();
    while let Some(token) = words.next() {
        match token {
            Token::Word(word) => {
                if ["GLOBAL", "PERSIST", "PERSIST_ONLY", "PASSWORD", "ROLE", "STATEMENT", "DEFAULT"]
                    .contains(&word.as_str())
                {
                    return Err(no());
                }
                // The old modes are put back: the dump's own, under which backslashes escape.
                if word.starts_with('@') && before == "SQL_MODE" {
                    plain_backslash = Some(false);
                }
                if word.starts_with("@@GLOBAL") || word.starts_with("@@PERSIST") {
                    return Err(no());
                }
                if !word.starts_with('@') || word.ends_with("SQL_MODE") {
                    before = word.rsplit(['@', '.']).next().unwrap_or_default().to_owned();
                }
            }
            Token::Quoted(value) if before == "SQL_MODE" => {
                plain_backslash = Some(value.to_ascii_uppercase().contains("NO_BACKSLASH_ESCAPES"));
            }
            Token::Quoted(_) | Token::Symbol(b'=' | b',' | b'-' | b'+' | b'.' | b':') => {}
            Token::Symbol(_) => return Err(no()),
        }
    }
    Ok(Class::Session { plain_backslash })
}

fn drop_one(words: &mut Words<'_>) -> Result<Class, String> {
    let class = match words.word().as_deref() {
        Some("TABLE" | "SEQUENCE") if words.all_in_one => Class::Code,
        Some("TABLE" | "SEQUENCE") => Class::Data,
        Some("VIEW" | "TRIGGER" | "PROCEDURE" | "FUNCTION") => Class::Code,
        Some("EVENT") => Class::Event,
        Some("PACKAGE") => {
            words.skip("BODY");
            Class::Code
        }
        _ => return Err(no()),
    };
    if words.skip("IF") {
        words.expect("EXISTS")?;
    }
    words.name()?;
    match words.next() {
        None => Ok(class),
        Some(_) => Err(no()),
    }
}

fn create(words: &mut Words<'_>) -> Result<Class, String> {
    // What may stand between the verb and what is made.
    loop {
        let Some(word) = words.word() else { return Err(no()) };
        match word.as_str() {
            "OR" | "REPLACE" | "AGGREGATE" => {}
            "ALGORITHM" | "DEFINER" => words.value()?,
            "SQL" => {
                words.expect("SECURITY")?;
                words.word();
            }
            "TABLE" => {
                if words.skip("IF") {
                    words.expect("NOT")?;
                    words.expect("EXISTS")?;
                }
                let name = words.name()?;
                return Ok(if words.all_in_one { Class::Code } else { Class::Table(name) });
            }
            "SEQUENCE" => return words.name().map(|_| Class::Data),
            "VIEW" | "TRIGGER" | "PROCEDURE" | "FUNCTION" => return words.name().map(|_| Class::Code),
            "EVENT" => return words.name().map(|_| Class::Event),
            "PACKAGE" => {
                words.skip("BODY");
                return words.name().map(|_| Class::Code);
            }
            _ => return Err(no()),
        }
    }
}

fn alter(words: &mut Words<'_>) -> Result<Class, String> {
    match words.word().as_deref() {
        Some("TABLE") => {
            words.name()?;
            let keys = words.word().is_some_and(|word| word == "DISABLE" || word == "ENABLE");
            if keys && words.word().as_deref() == Some("KEYS") && words.next().is_none() {
                Ok(Class::Data)
            } else {
                Err(no())
            }
        }
        Some("DATABASE") => {
            // Another database's name is of no interest: it is the dump's own that was dumped.
            words.name()?;
            let mut text = "ALTER DATABASE".to_owned();
            while let Some(token) = words.next() {
                let Token::Word(word) = token else { return Err(no()) };
                text.push(' ');
                text.push_str(&word.to_ascii_lowercase());
            }
            let plain = |word: &str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if text.split(' ').all(plain) { Ok(Class::DatabaseDefault(text)) } else { Err(no()) }
        }
        _ => Err(no()),
    }
}

/// `DO SETVAL(…)` of a sequence.
fn setval(words: &mut Words<'_>) -> Result<Class, String> {
    words.expect("SETVAL")?;
    if words.next() != Some(Token::Symbol(b'(')) {
        return Err(no());
    }
    words.name()?;
    while let Some(token) = words.next() {
        let number = matches!(&token, Token::Word(word) if word.bytes().all(|b| b.is_ascii_digit()));
        if !number && !matches!(token, Token::Symbol(b',' | b')' | b'-')) {
            return Err(no());
        }
    }
    Ok(Class::Data)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A word, number or variable, in upper case.
    Word(String),
    /// What stands in quotes of any kind, doubled quotes made one.
    Quoted(String),
    Symbol(u8),
}

/// A statement's tokens. Comments are skipped; what stands in `/*! … */` is taken for code.
struct Words<'a> {
    text: &'a [u8],
    at: usize,
    /// Within a comment that not every server takes for code.
    late: bool,
    /// Such a comment was met, and it is not all of the statement.
    differs: bool,
    /// The statement is one `/*!50001 … */`: how stand-ins for views are written.
    all_in_one: bool,
}

/// Servers of all kinds take code comments of these versions for code. (MariaDB skips those from 50700 to 99999.)
const SURE: u32 = 50_699;

impl<'a> Words<'a> {
    fn new(text: &'a [u8]) -> Self {
        let trimmed = text.trim_ascii();
        let inner = trimmed.strip_prefix(b"/*!50001 ").and_then(|rest| rest.strip_suffix(b"*/"));
        let all_in_one = inner.is_some_and(|inner| !inner.windows(2).any(|pair| pair == b"*/"));
        Self { text: trimmed, at: 0, late: false, differs: false, all_in_one }
    }

    /// Whether what was read so far is not what every server reads.
    fn doubtful(&self) -> bool {
        self.differs
    }

    fn rest(&self) -> &'a [u8] {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            let used = match rest {
                [b, ..] if b.is_ascii_whitespace() => 1,
                [b'#', ..] => line(rest),
                [b'-', b'-', b, ..] if b.is_ascii_whitespace() => line(rest),
                [b'/', b'*', b'!', after @ ..] => 3 + self.code_comment(after),
                [b'/', b'*', b'M', b'!', after @ ..] => 4 + self.code_comment(after),
                [b'/', b'*', after @ ..] => {
                    2 + after.windows(2).position(|pair| pair == b"*/").map_or(after.len(), |end| end + 2)
                }
                [b'*', b'/', ..] => {
                    self.differs |= self.late && !self.text[self.at + 2..].trim_ascii().is_empty();
                    self.late = false;
                    2
                }
                _ => return,
            };
            self.at += used;
        }
    }

    /// The digits of its version.
    fn code_comment(&mut self, after: &[u8]) -> usize {
        let digits = after.iter().take_while(|b| b.is_ascii_digit()).count().min(6);
        let version = String::from_utf8_lossy(&after[..digits]).parse().unwrap_or(0);
        if version > SURE {
            self.late = true;
            self.differs |= self.at > 0;
        }
        digits
    }

    fn next(&mut self) -> Option<Token> {
        self.skip_blanks();
        let rest = self.rest();
        let first = *rest.first()?;
        if matches!(first, b'\'' | b'"' | b'`') {
            return Some(self.quoted(first));
        }
        let word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'@' | b'$') || *b >= 0x80;
        // A variable's name may have dots in it; an object's may not.
        let dotted = |b: &u8| word(b) || (first == b'@' && *b == b'.');
        let length = rest.iter().take_while(|b| dotted(b)).count();
        if length == 0 {
            self.at += 1;
            return Some(Token::Symbol(first));
        }
        self.at += length;
        Some(Token::Word(String::from_utf8_lossy(&rest[..length]).to_uppercase()))
    }

    fn quoted(&mut self, quote: u8) -> Token {
        let mut value = Vec::new();
        self.at += 1;
        while let Some((first, rest)) = self.rest().split_first() {
            self.at += 1;
            match *first {
                b'\\' if quote != b'`' && !rest.is_empty() => {
                    value.push(rest[0]);
                    self.at += 1;
                }
                b if b == quote && rest.first() == Some(&quote) => {
                    value.push(b);
                    self.at += 1;
                }
                b if b == quote => break,
                b => value.push(b),
            }
        }
        Token::Quoted(String::from_utf8_lossy(&value).into_owned())
    }

    fn word(&mut self) -> Option<String> {
        match self.next() {
            Some(Token::Word(word)) => Some(word),
            _ => None,
        }
    }

    fn expect(&mut self, wanted: &str) -> Result<(), String> {
        if self.word().as_deref() == Some(wanted) { Ok(()) } else { Err(no()) }
    }

    /// Whether `word` came; what else comes is left.
    fn skip(&mut self, word: &str) -> bool {
        let (at, late, differs) = (self.at, self.late, self.differs);
        if self.next() == Some(Token::Word(word.to_owned())) {
            return true;
        }
        (self.at, self.late, self.differs) = (at, late, differs);
        false
    }

    /// `= value`, where a value may be `` `user`@`host` ``.
    fn value(&mut self) -> Result<(), String> {
        if self.next() != Some(Token::Symbol(b'=')) {
            return Err(no());
        }
        self.next();
        if self.skip("@") {
            self.next();
        }
        Ok(())
    }

    /// The plain name of an object: no database before it.
    fn name(&mut self) -> Result<String, String> {
        let name = match self.next() {
            Some(Token::Quoted(name)) => name,
            Some(Token::Word(_)) => {
                // As it is written.
                let end = self.at;
                let begin = self.text[..end]
                    .iter()
                    .rposition(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$') || *b >= 0x80));
                String::from_utf8_lossy(&self.text[begin.map_or(0, |b| b + 1)..end]).into_owned()
            }
            _ => return Err(no()),
        };
        self.skip_blanks();
        if self.rest().first() == Some(&b'.') {
            return Err(format!("`{}` names an object of another database", beginning(self.text)));
        }
        Ok(name)
    }
}

/// Up to the line's end.
fn line(rest: &[u8]) -> usize {
    rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
}

#[cfg(test)]
#[path = "judge_test.rs"]
mod tests;
