//! Entries to bytes and back: the pax format of POSIX.1-2001, and of GNU's own only the long names, which other tools write.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::{
    BUFFER, Entry, Guard, Kind, Limits, Lister, Listing, MOST_TARGET, Time, bad, checked_name, name_of, shown,
};

const BLOCK: u64 = 512;

/// A long name and a few numbers are all that we need of an extended header.
const MOST_EXTENDED: u64 = 256 * 1024;

/// What fits a field of seven octal digits.
const MOST_OCTAL_ID: u32 = 0o7_777_777;
const MOST_OCTAL_SIZE: u64 = 0o77_777_777_777;

const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Writes an archive.
#[derive(Debug)]
pub(super) struct TapeWriter<W> {
    sink: W,
    /// Of the file that is being written.
    size: u64,
    left: u64,
}

impl<W: Write> TapeWriter<W> {
    pub fn new(sink: W) -> Self {
        Self { sink, size: 0, left: 0 }
    }

    /// A file's `size` bytes follow through [`TapeWriter::body`].
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let mut path = if entry.path.is_empty() { b".".to_vec() } else { entry.path.clone() };
        if entry.kind == Kind::Directory {
            path.push(b'/');
        }
        let extended = extended(entry, &path);
        if !extended.is_empty() {
            let mut header = Header::new_ustar();
            fill(&mut header, b"PaxHeader", b"");
            header.set_entry_type(EntryType::XHeader);
            header.set_size(extended.len() as u64);
            header.set_mode(0o600);
            header.set_cksum();
            self.sink.write_all(header.as_bytes())?;
            self.sink.write_all(&extended)?;
            self.pad(extended.len() as u64)?;
        }
        let mut header = Header::new_ustar();
        fill(&mut header, &path, &entry.link);
        header.set_entry_type(match entry.kind {
            Kind::Directory => EntryType::Directory,
            Kind::File => EntryType::Regular,
            Kind::Symlink => EntryType::Symlink,
            Kind::HardLink => EntryType::Link,
            Kind::Other(kind) => return Err(bad(format!("{} is {}", entry.shown(), name_of(kind)))),
        });
        header.set_size(entry.size.min(MOST_OCTAL_SIZE));
        header.set_mode(entry.mode);
        header.set_uid(u64::from(entry.uid.min(MOST_OCTAL_ID)));
        header.set_gid(u64::from(entry.gid.min(MOST_OCTAL_ID)));
        header.set_mtime(u64::try_from(entry.mtime.seconds).unwrap_or(0).min(MOST_OCTAL_SIZE));
        header.set_cksum();
        self.sink.write_all(header.as_bytes())?;
        (self.size, self.left) = (entry.size, entry.size);
        Ok(())
    }

    pub fn body(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| bad("a file is longer than announced"))?;
        self.sink.write_all(bytes)?;
        if self.left == 0 { self.pad(self.size) } else { Ok(()) }
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = size % BLOCK;
        let missing = if over == 0 { 0 } else { BLOCK - over };
        self.sink.write_all(ZEROS.get(..usize::try_from(missing).unwrap_or_default()).unwrap_or_default())
    }

    pub fn finish(mut self) -> io::Result<W> {
        self.sink.write_all(&ZEROS)?;
        self.sink.write_all(&ZEROS)?;
        self.sink.flush()?;
        Ok(self.sink)
    }
}

/// As much of both names as has room; what has none stands in the extended header.
fn fill(header: &mut Header, path: &[u8], link: &[u8]) {
    let put = |field: &mut [u8], value: &[u8]| {
        let n = value.len().min(field.len());
        field[..n].copy_from_slice(&value[..n]);
    };
    if let Some(ustar) = header.as_ustar_mut() {
        put(&mut ustar.name, path);
        put(&mut ustar.linkname, link);
    }
}

/// The records of what an old header has no room for.
fn extended(entry: &Entry, path: &[u8]) -> Vec<u8> {
    const FIELD: usize = 100;
    let mut records = Vec::new();
    let mut put = |key: &str, value: &[u8]| {
        // The length counts itself.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + rest.to_string().len();
        length = rest + length.to_string().len();
        records.extend_from_slice(format!("{length} {key}=").as_bytes());
        records.extend_from_slice(value);
        records.push(b'\n');
    };
    if path.len() > FIELD {
        put("path", path);
    }
    if entry.link.len() > FIELD {
        put("linkpath", &entry.link);
    }
    if entry.size > MOST_OCTAL_SIZE {
        put("size", entry.size.to_string().as_bytes());
    }
    for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if id > MOST_OCTAL_ID {
            put(key, id.to_string().as_bytes());
        }
    }
    let Time { seconds, nanoseconds } = entry.mtime;
    if nanoseconds != 0 || seconds < 0 || seconds.cast_unsigned() > MOST_OCTAL_SIZE {
        put("mtime", time_text(entry.mtime).as_bytes());
    }
    records
}

/// `-1.5` is half a second before the second before 1970.
fn time_text(time: Time) -> String {
    let total = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let (sign, size) = (if total < 0 { "-" } else { "" }, total.unsigned_abs());
    format!("{sign}{}.{:09}", size / 1_000_000_000, size % 1_000_000_000)
}

fn parse_time(text: &str) -> Option<Time> {
    let (sign, size) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (whole, part) = size.split_once('.').unwrap_or((size, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 18 || !digits(whole) || !digits(part) {
        return None;
    }
    let nanoseconds: i128 = format!("{part:0<9}").get(..9)?.parse().ok()?;
    let total = sign * (whole.parse::<i128>().ok()? * 1_000_000_000 + nanoseconds);
    let seconds = i64::try_from(total.div_euclid(1_000_000_000)).ok()?;
    Some(Time { seconds, nanoseconds: u32::try_from(total.rem_euclid(1_000_000_000)).ok()? })
}

/// Reads an archive. Memory is bounded whatever it says.
#[derive(Debug)]
pub(super) struct TapeReader<R> {
    source: R,
    /// Of the entry's content, and of what fills its last block.
    body: u64,
    padding: u64,
}

/// What extended headers say of the entry that follows.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Time>,
}

impl<R: Read> TapeReader<R> {
    pub fn new(source: R) -> Self {
        Self { source, body: 0, padding: 0 }
    }

    /// The next entry; what is left of the one before is skipped. `None` at the end, which has to be there.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        self.skip()?;
        let mut extended = None;
        loop {
            let Some(header) = self.header()? else {
                if extended.is_some() {
                    return Err(bad("the archive ends where an entry should follow"));
                }
                return Ok(None);
            };
            let kind = header.entry_type().as_byte();
            if !matches!(kind, b'x' | b'L' | b'K') {
                return self.entry(&header, extended.unwrap_or_default()).map(Some);
            }
            let text = self.small_body(&header)?;
            let extended = extended.get_or_insert_with(Extended::default);
            match kind {
                b'x' => extended.read(&text)?,
                b'L' => extended.path = Some(until_nul(text)),
                _ => extended.link = Some(until_nul(text)),
            }
        }
    }

    /// Content of the entry, at most `buffer` at a time; 0 at its end.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.body).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.source.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(bad("the archive is cut off"));
        }
        self.body -= n as u64;
        Ok(n)
    }

    fn skip(&mut self) -> io::Result<()> {
        let left = std::mem::take(&mut self.body) + std::mem::take(&mut self.padding);
        let skipped = io::copy(&mut (&mut self.source).take(left), &mut io::sink())?;
        if skipped < left { Err(bad("the archive is cut off")) } else { Ok(()) }
    }

    /// `None`: the block of zeros that ends an archive.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        self.source.read_exact(header.as_mut_bytes()).map_err(cut_off)?;
        let bytes = header.as_bytes();
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        let own: u32 = bytes[148..156].iter().map(|byte| u32::from(*byte)).sum();
        if header.cksum().ok() != Some(sum - own + 8 * u32::from(b' ')) {
            return Err(bad("a header in the archive has a wrong checksum"));
        }
        Ok(Some(header))
    }

    fn small_body(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let size = header.entry_size().map_err(|_| bad("a header in the archive cannot be read"))?;
        if size > MOST_EXTENDED {
            return Err(bad(format!("an extended header in the archive has {size} bytes")));
        }
        let mut text = vec![0; usize::try_from(size).unwrap_or_default()];
        self.source.read_exact(&mut text).map_err(cut_off)?;
        self.padding = padding(size);
        self.skip()?;
        Ok(text)
    }

    fn entry(&mut self, header: &Header, extended: Extended) -> io::Result<Entry> {
        let raw = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let path = checked_name(&raw)?;
        let kind = match header.entry_type().as_byte() {
            b'0' | 0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'5' => Kind::Directory,
            other => Kind::Other(other),
        };
        let unreadable = |_| bad(format!("the header of {} cannot be read", shown(&raw)));
        let size = match extended.size {
            Some(size) => size,
            None => header.entry_size().map_err(unreadable)?,
        };
        if matches!(kind, Kind::Directory | Kind::Symlink | Kind::HardLink) && size != 0
            || kind == Kind::File && raw.ends_with(b"/")
        {
            return Err(bad(format!("{} is no file and has content", shown(&raw))));
        }
        let id =
            |value: u64| u32::try_from(value).map_err(|_| bad(format!("{} has an owner that cannot be", shown(&raw))));
        let link = extended.link.or_else(|| header.link_name_bytes().map(|link| link.into_owned())).unwrap_or_default();
        let entry = Entry {
            kind,
            mode: header.mode().map_err(unreadable)? & 0o7777,
            uid: extended.uid.map_or_else(|| header.uid().map_err(unreadable).and_then(id), Ok)?,
            gid: extended.gid.map_or_else(|| header.gid().map_err(unreadable).and_then(id), Ok)?,
            size,
            mtime: match extended.mtime {
                Some(time) => time,
                None => Time {
                    seconds: i64::try_from(header.mtime().map_err(unreadable)?).unwrap_or_default(),
                    nanoseconds: 0,
                },
            },
            link: match kind {
                Kind::HardLink => checked_name(&link)?,
                Kind::Symlink if link.is_empty() || link.contains(&0) || link.len() > MOST_TARGET => {
                    return Err(bad(format!("the symbolic link {} has no target", shown(&raw))));
                }
                Kind::Symlink => link,
                Kind::Directory | Kind::File | Kind::Other(_) => Vec::new(),
            },
            path,
        };
        if entry.uid == u32::MAX || entry.gid == u32::MAX {
            return Err(bad(format!("{} has an owner that cannot be", entry.shown())));
        }
        (self.body, self.padding) = (size, padding(size));
        Ok(entry)
    }
}

fn cut_off(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => bad("the archive is cut off"),
        _ => error,
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    text
}

impl Extended {
    /// Records of the form `LENGTH KEY=VALUE\n`, the length counting all of it.
    fn read(&mut self, mut text: &[u8]) -> io::Result<()> {
        while !text.is_empty() {
            let (record, rest) = next_record(text).ok_or_else(|| bad("an extended header cannot be read"))?;
            text = rest;
            let Some(equals) = record.iter().position(|byte| *byte == b'=') else {
                return Err(bad("an extended header cannot be read"));
            };
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            self.record(&String::from_utf8_lossy(key), value)?;
        }
        Ok(())
    }

    fn record(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let text = || String::from_utf8_lossy(value).into_owned();
        let unreadable = || bad(format!("an extended header has the {key} {}", shown(value)));
        match key {
            "path" => self.path = Some(value.to_owned()),
            "linkpath" => self.link = Some(value.to_owned()),
            "size" => self.size = Some(text().parse().map_err(|_| unreadable())?),
            "uid" => self.uid = Some(text().parse().map_err(|_| unreadable())?),
            "gid" => self.gid = Some(text().parse().map_err(|_| unreadable())?),
            "mtime" => self.mtime = Some(parse_time(&text()).ok_or_else(unreadable)?),
            sparse if sparse.starts_with("GNU.sparse") => {
                return Err(bad("the archive has a sparse file, which no backup holds"));
            }
            // Owners by name, other times, attributes: not kept by packing either.
            _ => {}
        }
        Ok(())
    }
}

fn next_record(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = text.iter().take(8).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
    let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
    Some((record, &text[length..]))
}

/// Reads a whole archive as unpacking would, and makes nothing: what it holds, if it is one.
pub(in crate::data) fn check_stream(source: impl Read, limits: Limits) -> io::Result<Listing> {
    let mut reader = TapeReader::new(source);
    let mut guard = Guard::new(limits);
    let mut lister = Lister::default();
    let mut buffer = vec![0; BUFFER];
    while let Some(entry) = reader.next()? {
        guard.admit(&entry)?;
        let mut content = Sha256::new();
        loop {
            let n = reader.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            content.update(&buffer[..n]);
        }
        lister.add(&entry, (entry.kind == Kind::File).then_some(content));
    }
    Ok(lister.finish())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_before_1970_and_long_after() {
        for (seconds, nanoseconds, text) in
            [(0, 0, "0.000000000"), (-2, 500_000_000, "-1.500000000"), (99_999_999_999, 1, "99999999999.000000001")]
        {
            let time = Time { seconds, nanoseconds };
            assert_eq!(time_text(time), text);
            assert_eq!(parse_time(text), Some(time));
        }
        for bad in ["", "-", ".5", "1e5", "1.2.3", "99999999999999999999"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for length in 90..120 {
            let path = vec![b'x'; length];
            let entry = Entry {
                path: path.clone(),
                kind: Kind::File,
                mode: 0o644,
                uid: u32::MAX - 1,
                gid: 0,
                size: 0,
                mtime: Time::default(),
                link: Vec::new(),
            };
            let mut writer = TapeWriter::new(Vec::new());
            writer.entry(&entry).unwrap();
            let bytes = writer.finish().unwrap();
            assert_eq!(TapeReader::new(&bytes[..]).next().unwrap(), Some(entry));
        }
    }

    proptest! {
        #[test]
        fn rubbish_is_refused_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let limits = Limits { entries: 10, bytes: 10_000 };
            prop_assert!(check_stream(&bytes[..], limits).is_err() || bytes.starts_with(&ZEROS));
        }

        #[test]
        fn records_never_panic(text in proptest::collection::vec(any::<u8>(), 0..100), real in any::<bool>()) {
            let mut all = if real { b"12 path=aaa\n9 uid=5\n".to_vec() } else { Vec::new() };
            all.extend(text);
            let _ = Extended::default().read(&all);
        }
    }
}
