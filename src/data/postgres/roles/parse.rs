//! What `pg_dumpall --roles-only` wrote, read for what it says.
//!
//! Nothing of the file is ever run: it is taken apart into roles with their attributes, and SQL is made anew of those. Whatever is not of the forms
//! that `pg_dumpall` writes (`pg_dumpall.c`, PostgreSQL 9.6 to 18) is refused, with the line:
//!
//! ```sql
//! CREATE ROLE app;
//! ALTER ROLE app WITH NOSUPERUSER INHERIT … LOGIN CONNECTION LIMIT 3 PASSWORD 'SCRAM-SHA-256$…' VALID UNTIL '…';
//! COMMENT ON ROLE app IS '…';
//! ALTER ROLE app SET search_path TO 'a', 'b';
//! GRANT app TO "other role" WITH ADMIN OPTION, INHERIT TRUE, SET FALSE GRANTED BY postgres;
//! ```
//!
//! Besides these only its three `SET`s, security labels (which are counted and left out), comments, and `\restrict`.

use crate::secret::Secret;

/// A name is at most 63 bytes long, and a comment seldom longer than a page.
const LONGEST_TOKEN: usize = 64 * 1024;

/// All that a file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::data) struct RolesOf {
    pub roles: Vec<Role>,
    pub memberships: Vec<Membership>,
    /// Security labels, which are not put back.
    pub labels: usize,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::data) struct Role {
    pub name: String,
    /// `LOGIN`, `INHERIT`, …: without those that it does not have.
    pub attributes: Vec<&'static str>,
    pub connections: Option<u32>,
    /// Its hash, as the server keeps it.
    pub password: Option<Secret>,
    pub valid_until: Option<String>,
    pub comment: Option<String>,
    /// Names and values.
    pub settings: Vec<(String, Vec<String>)>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::data) struct Membership {
    pub role: String,
    pub member: String,
    pub admin: bool,
    /// From PostgreSQL 16 on.
    pub inherit: Option<bool>,
    pub set: Option<bool>,
}

/// What a role may have, each with its opposite.
pub(super) const ATTRIBUTES: [(&str, &str); 7] = [
    ("SUPERUSER", "NOSUPERUSER"),
    ("INHERIT", "NOINHERIT"),
    ("CREATEROLE", "NOCREATEROLE"),
    ("CREATEDB", "NOCREATEDB"),
    ("LOGIN", "NOLOGIN"),
    ("REPLICATION", "NOREPLICATION"),
    ("BYPASSRLS", "NOBYPASSRLS"),
];

/// The error is for people, and has nothing of the file in it: there are passwords in there.
pub(in crate::data) fn parse(text: &str) -> Result<RolesOf, String> {
    let mut found = RolesOf::default();
    let mut scanner = Scanner { rest: text, line: 1 };
    loop {
        let line = scanner.line;
        match scanner.statement() {
            Some(tokens) if tokens.is_empty() => return Ok(found),
            Some(tokens) => {
                found.take(&mut Statement { rest: &tokens }).ok_or_else(|| {
                    format!("there is something at line {line} that is not of the form `pg_dumpall` writes roles in")
                })?;
            }
            None => return Err(format!("there is something at line {} that is no SQL of roles", scanner.line)),
        }
    }
}

impl RolesOf {
    fn take(&mut self, statement: &mut Statement<'_>) -> Option<()> {
        if statement.words(&["CREATE", "ROLE"]) {
            let name = statement.name()?;
            let known = self.roles.iter().any(|role| role.name == name);
            (!known).then(|| self.roles.push(Role { name, ..Role::default() }))?;
        } else if statement.words(&["ALTER", "ROLE"]) {
            let name = statement.name()?;
            let role = self.role(&name)?;
            if statement.words(&["WITH"]) {
                role.attributes(statement)?;
            } else if statement.words(&["SET"]) {
                let setting = statement.name()?;
                statement.words(&["TO"]).then_some(())?;
                let mut values = vec![statement.text()?];
                while statement.mark(',') {
                    values.push(statement.text()?);
                }
                role.settings.push((setting, values));
            }
        } else if statement.words(&["COMMENT", "ON", "ROLE"]) {
            let name = statement.name()?;
            statement.words(&["IS"]).then_some(())?;
            self.role(&name)?.comment = Some(statement.text()?);
        } else if statement.words(&["GRANT"]) {
            self.memberships.push(membership(statement)?);
        } else if statement.words(&["SECURITY", "LABEL"]) {
            self.labels += 1;
            statement.rest = &[];
        } else {
            harmless_setting(statement)?;
        }
        statement.rest.is_empty().then_some(())
    }

    /// One that was created before.
    fn role(&mut self, name: &str) -> Option<&mut Role> {
        self.roles.iter_mut().find(|role| role.name == name)
    }
}

impl Role {
    fn attributes(&mut self, statement: &mut Statement<'_>) -> Option<()> {
        while !statement.rest.is_empty() {
            if ATTRIBUTES.iter().any(|(_, lacks)| statement.words(&[lacks])) {
                continue;
            }
            if let Some((has, _)) = ATTRIBUTES.iter().find(|(has, _)| statement.words(&[has])) {
                self.attributes.push(has);
            } else if statement.words(&["CONNECTION", "LIMIT"]) {
                self.connections = Some(statement.word()?.parse().ok()?);
            } else if statement.words(&["PASSWORD"]) {
                self.password = Some(statement.text().filter(|hash| is_hash(hash)).map(Secret::new)?);
            } else if statement.words(&["VALID", "UNTIL"]) {
                self.valid_until = Some(statement.text()?);
            } else {
                return None;
            }
        }
        Some(())
    }
}

/// As PostgreSQL tells a hash from a password (`get_password_type` in `crypt.c`): what is neither would be hashed, and was never written by it.
fn is_hash(text: &str) -> bool {
    let md5 = |hash: &str| hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    let scram = |hash: &str| hash.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=:$".contains(&b));
    text.strip_prefix("md5").is_some_and(md5) || text.strip_prefix("SCRAM-SHA-256$").is_some_and(scram)
}

fn membership(statement: &mut Statement<'_>) -> Option<Membership> {
    let role = statement.name()?;
    statement.words(&["TO"]).then_some(())?;
    let mut membership = Membership { role, member: statement.name()?, ..Membership::default() };
    if statement.words(&["WITH"]) {
        loop {
            if statement.words(&["ADMIN", "OPTION"]) {
                membership.admin = true;
            } else if statement.words(&["INHERIT"]) {
                membership.inherit = Some(statement.truth()?);
            } else if statement.words(&["SET"]) {
                membership.set = Some(statement.truth()?);
            } else {
                return None;
            }
            if !statement.mark(',') {
                break;
            }
        }
    }
    if statement.words(&["GRANTED", "BY"]) {
        statement.name()?;
    }
    Some(membership)
}

/// How the file itself is to be read: as it is read here.
fn harmless_setting(statement: &mut Statement<'_>) -> Option<()> {
    statement.words(&["SET"]).then_some(())?;
    let setting = statement.word()?;
    statement.mark('=').then_some(())?;
    match (setting, statement.rest) {
        ("default_transaction_read_only", [Token::Word(word)]) if word == "off" => {}
        ("standard_conforming_strings", [Token::Word(word)]) if word == "on" => {}
        ("client_encoding", [Token::Text(encoding)]) if matches!(&**encoding, "UTF8" | "SQL_ASCII") => {}
        _ => return None,
    }
    statement.rest = &[];
    Some(())
}

#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    /// In double quotes.
    Name(String),
    /// In single quotes.
    Text(String),
    Mark(char),
}

struct Statement<'a> {
    rest: &'a [Token],
}

impl<'a> Statement<'a> {
    /// Takes these words, if they are next.
    fn words(&mut self, words: &[&str]) -> bool {
        let next = self.rest.get(..words.len()).unwrap_or_default();
        let same = next.len() == words.len()
            && next.iter().zip(words).all(|(token, word)| matches!(token, Token::Word(next) if next == word));
        if same {
            self.rest = &self.rest[words.len()..];
        }
        same
    }

    fn mark(&mut self, mark: char) -> bool {
        let same = self.rest.first() == Some(&Token::Mark(mark));
        self.rest = &self.rest[usize::from(same)..];
        same
    }

    fn word(&mut self) -> Option<&'a str> {
        let (Token::Word(word), rest) = self.rest.split_first()? else { return None };
        self.rest = rest;
        Some(word)
    }

    /// Of a role or a setting: what is not quoted is in lower case, or `pg_dumpall` would have quoted it.
    fn name(&mut self) -> Option<String> {
        let (first, rest) = self.rest.split_first()?;
        let name = match first {
            Token::Name(name) => name,
            Token::Word(word) if !word.bytes().any(|b| b.is_ascii_uppercase()) => word,
            _ => return None,
        };
        self.rest = rest;
        (!name.is_empty()).then(|| name.clone())
    }

    fn text(&mut self) -> Option<String> {
        let (Token::Text(text), rest) = self.rest.split_first()? else { return None };
        self.rest = rest;
        Some(text.clone())
    }

    fn truth(&mut self) -> Option<bool> {
        match self.word()? {
            "TRUE" => Some(true),
            "FALSE" => Some(false),
            _ => None,
        }
    }
}

struct Scanner<'a> {
    rest: &'a str,
    line: usize,
}

impl Scanner<'_> {
    /// Up to a semicolon; nothing at the end of the file. `None`: what comes next is none of what is known here.
    fn statement(&mut self) -> Option<Vec<Token>> {
        let mut tokens = Vec::new();
        loop {
            self.blank(tokens.is_empty())?;
            match self.token() {
                None if self.rest.is_empty() && tokens.is_empty() => return Some(tokens),
                None => return None,
                Some(Token::Mark(';')) if tokens.is_empty() => {}
                Some(Token::Mark(';')) => return Some(tokens),
                Some(token) => tokens.push(token),
            }
        }
    }

    /// White space and comments; between statements `\restrict` as well.
    fn blank(&mut self, between: bool) -> Option<()> {
        loop {
            let trimmed = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
            self.skip(self.rest.len() - trimmed.len());
            let line = self.rest.split('\n').next().unwrap_or_default();
            let fence = between && line.starts_with('\\');
            if fence {
                let (command, key) = line.trim_end().split_once(' ')?;
                let known = matches!(command, "\\restrict" | "\\unrestrict");
                (known && key.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(())?;
            }
            if !fence && !line.starts_with("--") {
                return Some(());
            }
            self.skip(line.len());
        }
    }

    fn skip(&mut self, bytes: usize) {
        self.line += self.rest[..bytes].matches('\n').count();
        self.rest = &self.rest[bytes..];
    }

    fn token(&mut self) -> Option<Token> {
        let first = self.rest.chars().next()?;
        let (token, used) = match first {
            ';' | ',' | '=' => (Token::Mark(first), 1),
            '"' => quoted(&self.rest[1..], '"', false).map(|(name, used)| (Token::Name(name), used + 1))?,
            '\'' => quoted(&self.rest[1..], '\'', false).map(|(text, used)| (Token::Text(text), used + 1))?,
            'E' if self.rest[1..].starts_with('\'') => {
                quoted(&self.rest[2..], '\'', true).map(|(text, used)| (Token::Text(text), used + 2))?
            }
            _ => {
                let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '$'));
                let word = &self.rest[..end.unwrap_or(self.rest.len())];
                (!word.is_empty()).then(|| (Token::Word(word.to_owned()), word.len()))?
            }
        };
        (used <= LONGEST_TOKEN).then_some(())?;
        self.skip(used);
        Some(token)
    }
}

/// What is in quotes, after the first; and how many bytes that is with the last. `escapes`: two backslashes are one, and no other escape is
/// known, because `pg_dumpall` writes no other.
fn quoted(text: &str, quote: char, escapes: bool) -> Option<(String, usize)> {
    let mut out = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\0' => return None,
            '\\' if escapes => {
                chars.next_if(|(_, next)| *next == '\\')?;
                out.push('\\');
            }
            c if c == quote => match chars.next_if(|(_, next)| *next == quote) {
                Some(_) => out.push(quote),
                None => return Some((out, at + quote.len_utf8())),
            },
            c => out.push(c),
        }
    }
    None
}
