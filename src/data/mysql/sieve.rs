//! What is learnt from a dump while it passes: rows of each table, versions, whether it is whole, what would be refused; and,
//! for a restore, the statements that go to the client and those that are kept.

use std::collections::BTreeMap;

use super::{
    judge::{self, Class},
    split::{Listen, Refused, Splitter},
};

/// Views, routines, triggers and events together may be as long as this, in bytes: they are held.
const MOST_CODE: usize = 32 * 1024 * 1024;

/// A statement of the dump that makes something other than data, or one that such a statement depends on. Without its delimiter.
pub(super) type Code = Vec<u8>;

/// What a dump says of itself and holds.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Rows of each table; a table without any is there too.
    pub tables: BTreeMap<String, u64>,
    /// `mariadb-dump 10.11.19-MariaDB`.
    pub tool: Option<String>,
    pub server: Option<String>,
    /// The closing comment came, and nothing after it.
    pub complete: bool,
    /// Something was left out, because the user may not see it.
    pub missing: Option<String>,
}

/// Does not hold what it was given. A dump that a restore would refuse is heard to its end nevertheless, unless `strict`.
#[derive(Debug)]
pub(super) struct Sieve {
    splitter: Option<Splitter>,
    listener: Listener,
}

#[derive(Debug)]
struct Listener {
    heard: Heard,
    refused: Option<String>,
    /// The client's, since it was last taken.
    out: Vec<u8>,
    code: Vec<Code>,
    code_bytes: usize,
    /// The table whose rows pass.
    table: Option<String>,
    purpose: Purpose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Only what is heard is wanted; what a restore would refuse is noted.
    Hear,
    /// Statements for the client, but no events, which would begin to run; the code is kept as well.
    Load,
    /// As for a load, but no code goes to the client.
    LoadData,
    /// Only the code.
    Code,
}

impl Sieve {
    pub fn new(purpose: Purpose) -> Self {
        let listener = Listener {
            heard: Heard::default(),
            refused: None,
            out: Vec::new(),
            code: Vec::new(),
            code_bytes: 0,
            table: None,
            purpose,
        };
        Self { splitter: Some(Splitter::default()), listener }
    }

    /// # Errors
    /// What cannot be a dump, or, for a load, may not be loaded.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), Refused> {
        let Some(splitter) = &mut self.splitter else { return Ok(()) };
        let fed = splitter.feed(chunk, &mut self.listener);
        if let (Err(refused), Purpose::Hear) = (&fed, self.listener.purpose) {
            // It cannot be followed any further.
            self.listener.refused.get_or_insert(refused.to_string());
            self.splitter = None;
            return Ok(());
        }
        fed
    }

    /// The statements since the last time, for the client.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.listener.out)
    }

    /// After the last piece.
    pub fn finish(mut self) -> Result<Sifted, Refused> {
        let purpose = self.listener.purpose;
        match self.splitter.take().map(|splitter| splitter.finish(&mut self.listener)) {
            Some(Err(refused)) if purpose == Purpose::Hear => {
                self.listener.refused.get_or_insert(refused.to_string());
            }
            Some(Err(refused)) => return Err(refused),
            _ => {}
        }
        let Listener { heard, refused, out, code, .. } = self.listener;
        Ok(Sifted { heard, refused, rest: out, code })
    }
}

/// All of a dump has passed.
#[derive(Debug)]
pub(super) struct Sifted {
    pub heard: Heard,
    /// Why a restore would refuse it.
    pub refused: Option<String>,
    /// The last statements, for the client.
    pub rest: Vec<u8>,
    pub code: Vec<Code>,
}

impl Listener {
    fn keep(&mut self, text: &[u8]) -> Result<(), String> {
        if self.purpose == Purpose::Hear {
            return Ok(());
        }
        self.code_bytes += text.len();
        if self.code_bytes > MOST_CODE {
            return Err(format!("views, routines, triggers and events are longer than {MOST_CODE} bytes"));
        }
        self.code.push(text.to_vec());
        Ok(())
    }

    fn loads(&self) -> bool {
        matches!(self.purpose, Purpose::Load | Purpose::LoadData)
    }

    fn send(&mut self, text: &[u8]) {
        if self.loads() {
            write_statement(&mut self.out, text);
        }
    }

    fn noted(&mut self, why: String) -> Result<(), String> {
        if self.purpose == Purpose::Hear {
            self.refused.get_or_insert(why);
            return Ok(());
        }
        Err(why)
    }
}

/// A statement as the client reads it, whatever is in it.
pub(super) fn write_statement(out: &mut Vec<u8>, text: &[u8]) {
    if text.contains(&b';') {
        out.extend_from_slice(b"DELIMITER ;;\n");
        out.extend_from_slice(text);
        out.extend_from_slice(b"\n;;\nDELIMITER ;\n");
    } else {
        out.extend_from_slice(text);
        out.extend_from_slice(b"\n;\n");
    }
}

impl Listen for Listener {
    fn statement(&mut self, text: &[u8], _: bool) -> Result<Option<bool>, String> {
        self.heard.complete = false;
        let class = match judge::judge(text) {
            Ok(class) => class,
            Err(why) => return self.noted(why).map(|()| None),
        };
        match class {
            Class::Session { plain_backslash } => {
                self.keep(text)?;
                self.send(text);
                return Ok(plain_backslash);
            }
            Class::Data => self.send(text),
            Class::Table(name) => {
                self.heard.tables.entry(name).or_default();
                self.send(text);
            }
            Class::Code => {
                self.keep(text)?;
                if self.purpose == Purpose::Load {
                    self.send(text);
                }
            }
            Class::Event => self.keep(text)?,
            Class::DatabaseDefault(text) => {
                self.keep(text.as_bytes())?;
                if self.purpose == Purpose::Load {
                    self.send(text.as_bytes());
                }
            }
        }
        Ok(None)
    }

    fn insert(&mut self, head: &[u8]) -> Result<(), String> {
        self.heard.complete = false;
        match judge::inserts_into(head) {
            Ok(table) => {
                self.heard.tables.entry(table.clone()).or_default();
                self.table = Some(table);
            }
            Err(why) => {
                let why = if why.is_empty() { "an `INSERT` that no dump program writes".to_owned() } else { why };
                self.noted(why)?;
            }
        }
        if self.loads() {
            self.out.extend_from_slice(head);
        }
        Ok(())
    }

    fn rows(&mut self, text: &[u8], begun: u64) -> Result<(), String> {
        if begun > 0
            && let Some(rows) = self.table.as_ref().and_then(|table| self.heard.tables.get_mut(table))
        {
            *rows += begun;
        }
        if self.loads() {
            self.out.extend_from_slice(text);
        }
        Ok(())
    }

    fn inserted(&mut self) -> Result<(), String> {
        self.table = None;
        if self.loads() {
            self.out.extend_from_slice(b";\n");
        }
        Ok(())
    }

    /// `-- MariaDB dump 10.19  Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)`, `-- Server version 10.11.19-MariaDB`.
    fn comment(&mut self, text: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(text);
        let text = text.trim();
        self.heard.complete = text.starts_with("Dump completed");
        if let Some(made) = text.split_once(" dump ").filter(|_| self.heard.tool.is_none()) {
            let version = made.1.split_once("Distrib ").map(|(_, rest)| rest).unwrap_or(made.1);
            let version = version.split(',').next().unwrap_or_default().trim();
            let program = if made.0 == "MariaDB" { "mariadb-dump" } else { "mysqldump" };
            self.heard.tool = Some(format!("{program} {version}"));
        } else if let Some(version) = text.strip_prefix("Server version").filter(|_| self.heard.server.is_none()) {
            self.heard.server = Some(version.trim().to_owned());
        } else if text.starts_with("insufficient privileges") {
            self.heard.missing.get_or_insert(text.to_owned());
        }
        Ok(())
    }
}
