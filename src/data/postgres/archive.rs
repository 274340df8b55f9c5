//! An archive in `pg_dump`'s custom format, as it goes by: its table of contents, and the rows of each table's data.
//!
//! The format is that of `pg_backup_archiver.c` and `pg_backup_custom.c`: a header, the table of contents, and then a block for each entry that
//! has data, in any order. A block is a run of chunks, each with its length, the last one of length 0; together the chunks are the text of a
//! `COPY`, plain or compressed with zlib. Everything up to the chunks is parsed from a buffer, which holds one entry at most; chunks are
//! taken as they come.
//!
//! An archive is whole if every entry that has data has its block and nothing is left over. Other compressions than zlib can be in
//! an archive that a newer `pg_dump` made by other hands: its tables are not counted, and of a format that is newer than 1.16 (PostgreSQL 17)
//! nothing is read.

use std::collections::HashMap;

use flate2::{Decompress, FlushDecompress, Status};

use super::{
    TableRows,
    script::{Rows, table_of},
};

/// An entry of the table of contents holds the definition of one thing; the longest functions are far below this.
const LONGEST_ENTRY: usize = 64 * 1024 * 1024;

const CUSTOM: u8 = 1;
const BLOCK_DATA: u8 = 1;
const BLOCK_BLOBS: u8 = 3;

/// Unpacked at a time, in bytes.
const PIECE: usize = 64 * 1024;

/// What an archive says it holds.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::data) struct Contents {
    /// Entries of the table of contents.
    pub entries: u64,
    /// In the order of their data. Empty where it is compressed in a way that is not read here.
    pub tables: Vec<TableRows>,
    pub database: Option<String>,
    pub server: Option<String>,
    pub tool: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Header,
    Entry {
        left: u64,
    },
    Block,
    /// The next chunk's length; of a large object where `blob`.
    Chunk {
        blob: bool,
    },
    Body {
        left: usize,
        blob: bool,
    },
    /// The next large object's number, or 0.
    Blob,
    /// In a version of the format that nobody told us of.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compressed {
    No,
    Zlib,
    Unknown,
}

/// Follows an archive.
#[derive(Debug)]
pub(in crate::data) struct Archive {
    at: At,
    buffer: Vec<u8>,
    version: (u8, u8),
    int_size: usize,
    offset_size: usize,
    compressed: Compressed,
    contents: Contents,
    /// Of entries whose data was not seen yet; the table's name where it is a table.
    open: HashMap<i64, Option<String>>,
    /// Of the block that is just going by.
    table: Option<String>,
    rows: Rows,
    inflate: Option<Decompress>,
    /// Rows are skipped: neither unpacked nor counted.
    outline: bool,
}

/// What goes by.
#[derive(Debug)]
pub(super) enum Seen<'a> {
    /// As it stands in the archive: all but the rows of tables.
    Other(&'a [u8]),
    /// The beginning of a block of rows, as it stands there; and how its chunks are written.
    Begin { block: &'a [u8], int_size: usize, packed: bool },
    /// Rows, unpacked.
    Rows(&'a [u8]),
    /// The end of that block, as it stands there.
    End(&'a [u8]),
}

/// The error is for people.
type Parsed<T> = Result<T, String>;

impl Default for Archive {
    fn default() -> Self {
        Self {
            at: At::Header,
            buffer: Vec::new(),
            version: (0, 0),
            int_size: 4,
            offset_size: 8,
            compressed: Compressed::No,
            contents: Contents::default(),
            open: HashMap::new(),
            table: None,
            rows: Rows::default(),
            inflate: None,
            outline: false,
        }
    }
}

impl Archive {
    /// One that skips the rows of tables.
    pub fn outline() -> Self {
        Self { outline: true, ..Self::default() }
    }

    pub fn take(&mut self, bytes: &[u8]) -> Parsed<()> {
        self.follow(bytes, &mut |_| {})
    }

    /// Tells what it takes. Of a format or a compression that is not read here, everything is something else.
    pub fn follow(&mut self, bytes: &[u8], to: &mut dyn FnMut(Seen<'_>)) -> Parsed<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.extend_from_slice(bytes);
        let mut used = 0;
        loop {
            let (before, in_rows) = (self.at, self.in_rows());
            let Some(n) = self.step(&buffer[used..], to)? else { break };
            let taken = &buffer[used..used + n];
            used += n;
            match before {
                At::Block if self.in_rows() => {
                    let packed = self.compressed == Compressed::Zlib;
                    to(Seen::Begin { block: taken, int_size: self.int_size, packed });
                }
                At::Chunk { blob: false } if in_rows && self.at == At::Block => to(Seen::End(taken)),
                At::Chunk { blob: false } | At::Body { blob: false, .. } if in_rows => {}
                _ => to(Seen::Other(taken)),
            }
        }
        buffer.drain(..used);
        if buffer.len() > LONGEST_ENTRY {
            return Err("its table of contents is not one".to_owned());
        }
        self.buffer = buffer;
        Ok(())
    }

    pub fn finish(self) -> Parsed<Contents> {
        if self.at == At::Unknown {
            return Ok(self.contents);
        }
        if !matches!(self.at, At::Block | At::Entry { left: 0 }) || !self.buffer.is_empty() {
            return Err("the archive is cut off".to_owned());
        }
        match self.open.len() {
            0 => Ok(self.contents),
            missing => Err(format!("the archive is cut off: the data of {missing} of its entries is missing")),
        }
    }

    /// Whether what comes next are the rows of a table, which can be read here.
    fn in_rows(&self) -> bool {
        self.table.is_some() && self.compressed != Compressed::Unknown
    }

    /// Takes one thing off the front: how many bytes; `None` where it is not all there yet.
    fn step(&mut self, bytes: &[u8], to: &mut dyn FnMut(Seen<'_>)) -> Parsed<Option<usize>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        if let At::Body { left, blob } = self.at {
            let n = left.min(bytes.len());
            if !blob {
                self.body(&bytes[..n], to)?;
            }
            self.at = if n == left { At::Chunk { blob } } else { At::Body { left: left - n, blob } };
            return Ok(Some(n));
        }
        let mut input = Input { rest: bytes, int_size: self.int_size };
        let taken = match self.at {
            At::Header => self.header(&mut input)?,
            At::Entry { left: 0 } => {
                self.at = At::Block;
                return Ok(Some(0));
            }
            At::Entry { left } => self.entry(&mut input, left),
            At::Block => self.block(&mut input)?,
            At::Chunk { blob } => self.chunk(&mut input, blob)?,
            At::Blob => input.int().map(|number| {
                self.at = if number == 0 { At::Block } else { At::Chunk { blob: true } };
            }),
            At::Unknown => return Ok(Some(bytes.len())),
            At::Body { .. } => None,
        };
        Ok(taken.map(|()| bytes.len() - input.rest.len()))
    }

    fn header(&mut self, input: &mut Input<'_>) -> Parsed<Option<()>> {
        const NONE: &str = "what `pg_dump` wrote is not an archive in its custom format";
        let (magic, rest) = match input.rest.split_first_chunk::<11>() {
            Some(split) => split,
            None if input.rest.len() < 5 || input.rest.starts_with(b"PGDMP") => return Ok(None),
            None => return Err(NONE.to_owned()),
        };
        let [b'P', b'G', b'D', b'M', b'P', major, minor, _, int_size, offset_size, format] = *magic else {
            return Err(NONE.to_owned());
        };
        if format != CUSTOM || !(1..=8).contains(&int_size) || !(1..=8).contains(&offset_size) || major != 1 {
            return Err(NONE.to_owned());
        }
        if !(12..=16).contains(&minor) {
            self.at = At::Unknown;
            input.rest = &[];
            return Ok(Some(()));
        }
        self.version = (major, minor);
        (self.int_size, self.offset_size) = (usize::from(int_size), usize::from(offset_size));
        (input.rest, input.int_size) = (rest, self.int_size);
        Ok(self.rest_of_header(input))
    }

    fn rest_of_header(&mut self, input: &mut Input<'_>) -> Option<()> {
        self.compressed = if self.version >= (1, 15) {
            match input.byte()? {
                0 => Compressed::No,
                1 => Compressed::Zlib,
                _ => Compressed::Unknown,
            }
        } else if input.int()? == 0 {
            Compressed::No
        } else {
            Compressed::Zlib
        };
        for _ in 0..7 {
            input.int()?;
        }
        let (database, server, tool) = (input.string()?, input.string()?, input.string()?);
        let left = u64::try_from(input.int()?).unwrap_or_default();
        self.contents = Contents { database, server, tool, entries: left, ..Contents::default() };
        self.at = At::Entry { left };
        Some(())
    }

    fn entry(&mut self, input: &mut Input<'_>, left: u64) -> Option<()> {
        let id = input.int()?;
        let has_data = input.int()? != 0;
        // Table and object id, tag.
        for _ in 0..3 {
            input.string()?;
        }
        let description = input.string()?;
        let _section = input.int()?;
        // Definition, and how to drop it.
        for _ in 0..2 {
            input.string()?;
        }
        let copy = input.string()?;
        // Schema, tablespace.
        for _ in 0..2 {
            input.string()?;
        }
        if self.version >= (1, 14) {
            input.string()?;
        }
        if self.version >= (1, 16) {
            input.int()?;
        }
        // Owner, and whether it has object ids as a column.
        for _ in 0..2 {
            input.string()?;
        }
        while input.string()?.is_some() {}
        input.skip(1 + self.offset_size)?;
        if has_data {
            let is_table = description.as_deref() == Some("TABLE DATA");
            let table =
                copy.filter(|_| is_table).and_then(|copy| table_of(copy.trim_end().trim_end_matches(';').as_bytes()));
            self.open.insert(id, table);
        }
        self.at = At::Entry { left: left - 1 };
        Some(())
    }

    fn block(&mut self, input: &mut Input<'_>) -> Parsed<Option<()>> {
        let (Some(kind), Some(id)) = (input.byte(), input.int()) else { return Ok(None) };
        let known = self.open.remove(&id);
        self.table = known.ok_or("the archive holds data that its table of contents does not name")?;
        self.rows = Rows::default();
        self.inflate = (self.compressed == Compressed::Zlib).then(|| Decompress::new(true));
        self.at = match kind {
            BLOCK_DATA => At::Chunk { blob: false },
            BLOCK_BLOBS => At::Blob,
            _ => return Err("the archive holds something that is neither data nor a large object".to_owned()),
        };
        Ok(Some(()))
    }

    fn chunk(&mut self, input: &mut Input<'_>, blob: bool) -> Parsed<Option<()>> {
        let Some(length) = input.int() else { return Ok(None) };
        let left = usize::try_from(length).map_err(|_| "the archive has a chunk of negative length")?;
        self.at = match left {
            0 if blob => At::Blob,
            0 => {
                self.end_of_table()?;
                At::Block
            }
            left => At::Body { left, blob },
        };
        Ok(Some(()))
    }

    fn body(&mut self, bytes: &[u8], to: &mut dyn FnMut(Seen<'_>)) -> Parsed<()> {
        if self.outline || !self.in_rows() {
            return Ok(());
        }
        let Some(inflate) = &mut self.inflate else {
            count(&mut self.rows, bytes);
            to(Seen::Rows(bytes));
            return Ok(());
        };
        let mut piece = Vec::with_capacity(PIECE);
        let mut rest = bytes;
        loop {
            piece.clear();
            let before = inflate.total_in();
            let status = inflate.decompress_vec(rest, &mut piece, FlushDecompress::None);
            let status = status.map_err(|e| format!("the archive's data cannot be unpacked: {e}"))?;
            let used = usize::try_from(inflate.total_in() - before).unwrap_or(rest.len());
            rest = &rest[used..];
            count(&mut self.rows, &piece);
            to(Seen::Rows(&piece));
            if status == Status::StreamEnd || (rest.is_empty() && piece.len() < PIECE) {
                return Ok(());
            }
            if used == 0 && piece.is_empty() {
                return Err("the archive's data cannot be unpacked".to_owned());
            }
        }
    }

    fn end_of_table(&mut self) -> Parsed<()> {
        let Some(name) = self.table.take() else { return Ok(()) };
        if self.compressed == Compressed::Unknown || self.outline {
            return Ok(());
        }
        if !self.rows.ended {
            return Err(format!("the data of {name} is cut off"));
        }
        self.contents.tables.push(TableRows { name, rows: self.rows.rows });
        Ok(())
    }
}

fn count(rows: &mut Rows, bytes: &[u8]) {
    if !rows.ended {
        rows.take(bytes);
    }
}

/// Bytes of the archive; each read is `None` where there are not enough.
pub(super) struct Input<'a> {
    pub rest: &'a [u8],
    pub int_size: usize,
}

impl Input<'_> {
    pub fn skip(&mut self, bytes: usize) -> Option<()> {
        self.rest = self.rest.get(bytes..)?;
        Some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.rest.first()?;
        self.skip(1)?;
        Some(byte)
    }

    /// A sign byte, then the value, least significant byte first.
    fn int(&mut self) -> Option<i64> {
        let (sign, bytes) = self.rest.get(..=self.int_size)?.split_first()?;
        let value = bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        self.skip(1 + self.int_size)?;
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        Some(if *sign == 0 { value } else { -value })
    }

    /// `Some(None)`: a null string, which has length -1.
    pub fn string(&mut self) -> Option<Option<String>> {
        let length = self.int()?;
        let Ok(length) = usize::try_from(length) else { return Some(None) };
        let text = String::from_utf8_lossy(self.rest.get(..length)?).into_owned();
        self.skip(length)?;
        Some(Some(text))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 1_usize..50) {
            for start in [&b""[..], b"PGDMP\x01\x0e\x00\x04\x08\x01", b"PGDMP\x01\x10\x00\x04\x08\x01"] {
                let mut archive = Archive::default();
                let whole = [start, &bytes].concat();
                if whole.chunks(cut).all(|piece| archive.take(piece).is_ok()) {
                    let _ = archive.finish();
                }
            }
        }
    }
}
