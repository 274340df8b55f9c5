//! An archive in the custom format, taken apart for a restore: its outline for `pg_restore`, its rows for Refit itself.
//!
//! `pg_restore` knows how everything but rows becomes SQL, and in which order. Rows are in the archive just as `psql` is to read them, only
//! compressed; sending them through `pg_restore` would take them into the container, out again and in once more. So `pg_restore` gets an
//! [`Outline`]: the same archive, in which the rows of each table are one line, a random mark with the table's number. In the SQL that it prints, each mark
//! is then replaced by those rows ([`TableRowsReader`]). What comes of it is byte for byte what `pg_restore` would have printed of the whole archive, and takes
//! the same way through `Script`.
//!
//! Of an archive whose version or compression is not read here the outline is the archive itself, without a mark.

use std::{collections::VecDeque, io::Write};

use flate2::{Compression, write::ZlibEncoder};
use tokio::io::AsyncReadExt;

use super::{
    DataError,
    archive::{Archive, Seen},
};
use crate::data::unpack::PartReader;

/// Read of an archive at a time; what is compressed unpacks to a thousand times as much at most.
const CHUNK: usize = 32 * 1024;

/// An archive without rows, as it goes by.
#[derive(Debug)]
pub(in crate::data) struct Outline {
    archive: Archive,
    mark: String,
    tables: u64,
}

impl Outline {
    /// `mark`: what no archive can have in it.
    pub fn new(mark: &str) -> Self {
        Self { archive: Archive::outline(), mark: mark.to_owned(), tables: 0 }
    }

    /// Takes the next bytes, and appends the outline's. The error is for people.
    pub fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let (mark, tables) = (&self.mark, &mut self.tables);
        self.archive.follow(bytes, &mut |seen| match seen {
            Seen::Other(bytes) | Seen::End(bytes) => out.extend_from_slice(bytes),
            Seen::Begin { block, int_size, packed } => {
                out.extend_from_slice(block);
                chunk(format!("{mark}-{tables}\n").as_bytes(), int_size, packed, out);
                *tables += 1;
            }
            Seen::Rows(_) => {}
        })
    }
}

/// A chunk of a block: its length (a sign, and the value, least significant byte first), and then its bytes.
fn chunk(text: &[u8], int_size: usize, packed: bool, out: &mut Vec<u8>) {
    let mut bytes = text.to_vec();
    if packed {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        // Into memory, where nothing fails.
        bytes = encoder.write_all(text).and_then(|()| encoder.finish()).unwrap_or_default();
    }
    let length = (bytes.len() as u64).to_le_bytes();
    out.push(0);
    out.extend((0..int_size).map(|at| length.get(at).copied().unwrap_or_default()));
    out.append(&mut bytes);
}

/// The rows of an archive's tables, in the order of the archive.
#[derive(Debug)]
pub(in crate::data) struct TableRowsReader {
    reader: PartReader,
    archive: Archive,
    pieces: VecDeque<Piece>,
    chunk: Vec<u8>,
    /// Tables that have begun.
    begun: u64,
}

#[derive(Debug)]
enum Piece {
    Begin,
    Rows(Vec<u8>),
    End,
}

impl TableRowsReader {
    pub fn new(reader: PartReader) -> Self {
        Self { reader, archive: Archive::default(), pieces: VecDeque::new(), chunk: vec![0; CHUNK], begun: 0 }
    }

    /// The next rows of the table of that number; `None` at their end. Tables before it are skipped.
    pub async fn next(&mut self, table: u64) -> Result<Option<Vec<u8>>, DataError> {
        loop {
            match self.pieces.pop_front() {
                Some(Piece::Begin) => self.begun += 1,
                Some(Piece::Rows(rows)) if self.begun == table + 1 => return Ok(Some(rows)),
                Some(Piece::End) if self.begun == table + 1 => return Ok(None),
                Some(_) => {}
                None if self.read().await? => {}
                None => {
                    let cut_off = std::mem::take(&mut self.archive).finish().err();
                    let why =
                        cut_off.unwrap_or_else(|| "the archive's rows are in another order than it says".to_owned());
                    return Err(DataError::dump(why));
                }
            }
        }
    }

    /// False at the end.
    async fn read(&mut self) -> Result<bool, DataError> {
        let n = self.reader.read(&mut self.chunk).await.map_err(|e| DataError::dump(e.to_string()))?;
        let pieces = &mut self.pieces;
        let followed = self.archive.follow(&self.chunk[..n], &mut |seen| match seen {
            Seen::Begin { .. } => pieces.push_back(Piece::Begin),
            Seen::Rows(rows) => pieces.push_back(Piece::Rows(rows.to_vec())),
            Seen::End(_) => pieces.push_back(Piece::End),
            Seen::Other(_) => {}
        });
        followed.map_err(DataError::dump)?;
        Ok(n > 0)
    }

    /// Reads what is left, and says whether the archive is whole and what the manifest recorded.
    pub async fn finish(mut self) -> Result<(), DataError> {
        while self.read().await? {
            self.pieces.clear();
        }
        self.archive.finish().map_err(DataError::dump)?;
        self.reader.finish().await
    }
}

#[cfg(test)]
mod tests;
