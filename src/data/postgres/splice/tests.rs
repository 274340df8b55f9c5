//! What `pg_restore` is given, and what is put in the place of the marks.

use std::io::Read;

use flate2::read::ZlibDecoder;
use proptest::prelude::*;

use super::*;

fn number(value: usize) -> i64 {
    i64::try_from(value).unwrap()
}

/// An archive of version 1.14 with 4-byte integers, as `pg_dump` 15 writes it.
struct Made(Vec<u8>);

impl Made {
    fn new(packed: bool, tables: usize) -> Self {
        let mut made = Self(b"PGDMP\x01\x0e\x00\x04\x08\x01".to_vec());
        made.int(i64::from(packed));
        (0..7).for_each(|_| made.int(1));
        ["shop", "15.14", "15.14"].into_iter().for_each(|text| made.text(Some(text)));
        made.int(number(tables) + 1);
        (0..tables)
            .for_each(|id| made.entry(number(id), "TABLE DATA", &format!("COPY public.t{id} (a) FROM stdin;\n")));
        made.entry(99, "BLOBS", "");
        made
    }

    fn int(&mut self, value: i64) {
        self.0.push(u8::from(value < 0));
        self.0.extend(&value.unsigned_abs().to_le_bytes()[..4]);
    }

    fn text(&mut self, text: Option<&str>) {
        self.int(text.map_or(-1, |text| number(text.len())));
        self.0.extend(text.unwrap_or_default().bytes());
    }

    fn entry(&mut self, id: i64, description: &str, copy: &str) {
        self.int(id);
        self.int(1);
        ["0", "0", "tag", description].into_iter().for_each(|text| self.text(Some(text)));
        self.int(3);
        ["", "", copy, "public", "", "heap", "owner", "false"].into_iter().for_each(|text| self.text(Some(text)));
        self.text(None);
        self.0.push(2);
        self.0.extend([0; 8]);
    }

    fn chunks(&mut self, bytes: &[u8], size: usize) {
        for piece in bytes.chunks(size) {
            self.int(number(piece.len()));
            self.0.extend(piece);
        }
        self.int(0);
    }

    fn rows(&mut self, id: i64, rows: &str, packed: bool, size: usize) {
        self.0.push(1);
        self.int(id);
        let mut bytes = rows.as_bytes().to_vec();
        if packed {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(rows.as_bytes()).unwrap();
            bytes = encoder.finish().unwrap();
        }
        self.chunks(&bytes, size);
    }

    fn large_object(&mut self, bytes: &[u8]) {
        self.0.push(3);
        self.int(99);
        self.int(4242);
        self.chunks(bytes, 1000);
        self.int(0);
    }
}

/// The outline, cut into pieces of `cut` bytes on the way in; and the rows of each table.
fn apart(archive: &[u8], cut: usize) -> (Vec<u8>, Vec<String>) {
    let (mut outline, mut out) = (Outline::new("MARK"), Vec::new());
    let (mut whole, mut tables) = (Archive::default(), Vec::<Vec<u8>>::new());
    for piece in archive.chunks(cut) {
        outline.take(piece, &mut out).unwrap();
        let follow = &mut |seen: Seen<'_>| match seen {
            Seen::Begin { .. } => tables.push(Vec::new()),
            Seen::Rows(rows) => tables.last_mut().unwrap().extend_from_slice(rows),
            _ => {}
        };
        whole.follow(piece, follow).unwrap();
    }
    whole.finish().unwrap();
    (out, tables.into_iter().map(|rows| String::from_utf8(rows).unwrap()).collect())
}

#[test]
fn the_outline_is_an_archive_with_a_mark_for_each_table() {
    let rows = ["1\n2\n\\.\n".to_owned(), "\\.\n".to_owned(), format!("{}\n\\.\n", "x".repeat(100_000))];
    for packed in [false, true] {
        let mut whole = Made::new(packed, rows.len());
        whole.large_object(b"\x00\xff large");
        rows.iter().enumerate().for_each(|(id, rows)| whole.rows(number(id), rows, packed, 3000));
        let (outline, found) = apart(&whole.0, 4096);
        assert_eq!(found, rows);
        // What is no row stands in it as it was, and its rows are the marks.
        let mut expected = Made::new(packed, rows.len());
        expected.large_object(b"\x00\xff large");
        for id in 0..rows.len() {
            let mark = format!("MARK-{id}\n");
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(mark.as_bytes()).unwrap();
            let bytes = if packed { encoder.finish().unwrap() } else { mark.into_bytes() };
            expected.0.push(1);
            expected.int(number(id));
            expected.chunks(&bytes, 1000);
        }
        assert_eq!(outline, expected.0, "{packed}");
    }
}

#[test]
fn a_chunk_is_what_pg_restore_reads() {
    let mut out = Vec::new();
    chunk(b"MARK-7\n", 4, true, &mut out);
    assert_eq!((out[0], usize::from(out[1])), (0, out.len() - 5));
    let mut text = String::new();
    ZlibDecoder::new(&out[5..]).read_to_string(&mut text).unwrap();
    assert_eq!(text, "MARK-7\n");
}

#[test]
fn of_what_is_not_read_here_the_outline_is_the_archive() {
    // A version that nobody told us of; and one whose rows are compressed in another way.
    let newer = [&b"PGDMP\x01\x11\x00\x04\x08\x01"[..], &[7; 500]].concat();
    let mut other = Made::new(false, 1);
    other.rows(0, "1\n\\.\n", false, 100);
    other.0[6] = 15;
    // From 1.15 on the compression is one byte.
    let other = [&other.0[..11], &[3], &other.0[16..]].concat();
    for archive in [newer, other] {
        let (mut outline, mut out) = (Outline::new("MARK"), Vec::new());
        archive.chunks(50).for_each(|piece| outline.take(piece, &mut out).unwrap());
        assert_eq!(out, archive);
    }
}

proptest! {
    #[test]
    fn how_it_is_cut_makes_no_difference(cut in 1_usize..3000, size in 1_usize..500, packed in any::<bool>()) {
        let mut whole = Made::new(packed, 2);
        whole.rows(0, "a\tb\n\\N\t\\\\\n\\.\n", packed, size);
        whole.large_object(&[5; 2500]);
        whole.rows(1, &format!("{}\\.\n", "row\n".repeat(2000)), packed, size);
        prop_assert_eq!(apart(&whole.0, cut), apart(&whole.0, whole.0.len()));
    }
}
