//! Threat 11: archives that mean harm, built byte by byte, restored through the real [`restore_set`] from sets whose manifest and checksums are right. Nothing
//! is ever written outside, what is there stays as it is, and nothing is left of the attempt.

use sha2::Digest;

use super::{
    restore::{forge, put_back},
    trees::{files, names, write},
    *,
};
use crate::data::archive::tests::print;

/// An archive as whoever means harm would write it.
#[derive(Default)]
struct Forged(Vec<u8>);

impl Forged {
    fn new() -> Self {
        Self::default().dir(".")
    }

    /// One header of 512 bytes: name, mode, owners, size, time, checksum, kind, target, magic.
    fn header(mut self, kind: u8, name: &[u8], target: &[u8], size: &str) -> Self {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name);
        put(100, b"0000755\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, size.as_bytes());
        put(136, b"14000000000\0");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, target);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self
    }

    fn entry(self, kind: u8, name: &str, target: &str) -> Self {
        self.header(kind, name.as_bytes(), target.as_bytes(), "00000000000\0")
    }

    fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target)
    }

    fn hard(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, target)
    }

    fn body(mut self, text: &[u8]) -> Self {
        self.0.extend(text);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, text: &str) -> Self {
        let size = format!("{:011o}\0", text.len());
        self.header(b'0', name.as_bytes(), b"", &size).body(text.as_bytes())
    }

    /// An extended header with one record.
    fn pax(self, key: &str, value: &str) -> Self {
        let rest = key.len() + value.len() + 3;
        let length = (rest..).find(|length| length.to_string().len() + rest == *length).unwrap();
        let record = format!("{length} {key}={value}\n");
        self.header(b'x', b"pax", b"", &format!("{:011o}\0", record.len())).body(record.as_bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A directory with a file, beside a directory that nothing may touch, and a set of it.
struct Scene {
    dir: tempfile::TempDir,
    environment: Environment,
    set: PathBuf,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data/uploads");
        write(&root.join("x"), "live");
        write(&dir.path().join("data/outside/secret"), "untouched");
        let source = Backup { compression: Compression::None, ..files("uploads", &root, &[]) };
        let report = take(dir.path(), vec![source.clone()], None, &job()).await.unwrap();
        let set = dir.path().join(report.set.unwrap());
        Self { dir, environment: environment(vec![source]), set }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Puts an archive into the set, with a manifest that vouches for it.
    fn plant(&self, archive: &[u8], entries: u64, bytes: u64) {
        std::fs::write(self.set.join("uploads.tar"), archive).unwrap();
        forge(&self.set, |m| {
            let part = &mut m.parts[0];
            (part.bytes, part.raw_bytes) = (archive.len() as u64, archive.len() as u64);
            part.sha256 = hex::encode(sha2::Sha256::digest(archive));
            let listing = &mut part.tree.as_mut().unwrap().listing;
            (listing.entries, listing.bytes) = (entries, bytes);
        });
    }

    async fn refused(&self, expected: &str) {
        // The times of directories in which something is made and removed again do change.
        let world = || print(&self.data()).into_iter().map(|line| without_time(&line)).collect::<Vec<_>>();
        let before = world();
        let error = put_back(&self.environment, &self.set, None, &job()).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert!(error.left_data_alone());
        assert_eq!(world(), before, "{expected}");
        assert_eq!(names(&self.data()), ["outside", "uploads"], "{expected}");
    }
}

fn without_time(line: &str) -> String {
    // The second pair in brackets.
    let (head, rest) = line.rsplit_once(") (").unwrap();
    format!("{head}){}", rest.split_once(')').unwrap().1)
}

#[tokio::test]
async fn hostile_archives_change_nothing_anywhere() {
    let scene = Scene::new().await;
    let outside = scene.data().join("outside");
    let outside = outside.to_str().unwrap();
    let long = "n".repeat(256);
    let deep = "d/".repeat(300);
    let cases: Vec<(&str, Forged)> = vec![
        ("leads out of it", Forged::new().file("../escaped", "x")),
        ("leads out of it", Forged::new().dir("a").file("a/../../escaped", "x")),
        ("leads out of it", Forged::new().pax("path", "../escaped").file("innocent", "x")),
        ("leads out of it", Forged::new().dir("..")),
        ("is absolute", Forged::new().file("/etc/cron.d/owned", "x")),
        ("is absolute", Forged::new().file(&format!("{outside}/secret"), "x")),
        ("is absolute", Forged::new().pax("path", &format!("{outside}/secret")).file("innocent", "x")),
        ("has a NUL in it", Forged::new().pax("path", "a\0b").file("a", "x")),
        ("is longer than a name can be", Forged::new().pax("path", &long).file("a", "x")),
        ("lies too deep", Forged::new().pax("path", &deep).dir("d")),
        // Through a link to what is outside.
        ("is in no directory of the archive", Forged::new().link("a", outside).file("a/secret", "x")),
        ("is in no directory of the archive", Forged::new().link("a", "../outside").dir("a/b")),
        ("twice or in the wrong place", Forged::new().link("a", &format!("{outside}/secret")).file("a", "x")),
        ("twice or in the wrong place", Forged::new().dir("a").link("a", outside).file("a/secret", "x")),
        ("twice or in the wrong place", Forged::new().file("a", "x").file("a", "y")),
        ("twice or in the wrong place", Forged::new().file("b", "x").file("a", "y")),
        ("twice or in the wrong place", Forged::new().file("a", "x").dir(".")),
        ("twice or in the wrong place", Forged::new().link(".", outside)),
        ("begins with `a`, not with its top directory", Forged::default().file("a", "x")),
        ("begins with the top directory, not with its top", Forged::default().link(".", outside).file("secret", "x")),
        // Hard links.
        ("is absolute", Forged::new().hard("a", &format!("{outside}/secret"))),
        ("leads out of it", Forged::new().hard("a", "../outside/secret")),
        ("is no file before it", Forged::new().link("a", outside).hard("b", "a/secret")),
        ("is no file before it", Forged::new().link("a", &format!("{outside}/secret")).hard("b", "a")),
        ("is no file before it", Forged::new().hard("a", "a")),
        ("is no file before it", Forged::new().hard("a", "b").file("b", "x")),
        ("which is no file", Forged::new().dir("a").hard("b", "a")),
        ("No such file", Forged::new().file("b", "x").hard("c", "a")),
        // What no backup holds.
        ("is a device", Forged::new().entry(b'3', "null", "")),
        ("is a device", Forged::new().entry(b'4', "disk", "")),
        ("is a pipe", Forged::new().entry(b'6', "pipe", "")),
        ("is a sparse file", Forged::new().entry(b'S', "sparse", "")),
        ("a sparse file", Forged::new().pax("GNU.sparse.realsize", "1099511627776").file("sparse", "x")),
        ("is of kind `g`", Forged::new().entry(b'g', "global", "")),
        ("is of kind `M`", Forged::new().entry(b'M', "volume", "")),
        ("has no target", Forged::new().link("a", "")),
        ("has an owner that cannot be", Forged::new().pax("uid", "4294967295").file("a", "x")),
        // Sizes that are not there, or are too many.
        ("unpacks to more than the 100 bytes recorded", Forged::new().header(b'0', b"a", b"", "77777777777\0")),
        (
            "unpacks to more than the 100 bytes recorded",
            Forged::new().pax("size", "18446744073709551615").file("a", "x"),
        ),
        ("is no file and has content", Forged::new().header(b'5', b"a", b"", "00000000010\0").body(b"12345678")),
        ("cannot be read", Forged::new().header(b'0', b"a", b"", "not a size!\0")),
        ("an extended header in the archive has ", Forged::new().header(b'x', b"a", b"", "00077777777\0")),
        ("an extended header cannot be read", Forged::new().header(b'x', b"a", b"", "00000000004\0").body(b"9 x=")),
        ("ends where an entry should follow", Forged::new().pax("path", "a")),
        ("more than the 10 entries recorded", (0..10).fold(Forged::new(), |a, n| a.file(&format!("{n}"), "x"))),
    ];
    for (expected, archive) in cases {
        scene.plant(&archive.end(), 10, 100);
        scene.refused(expected).await;
    }
}

#[tokio::test]
async fn headers_that_are_not_what_they_were_are_refused() {
    let scene = Scene::new().await;
    let mut archive = Forged::new().file("a", "x").end();
    archive[513] ^= 1;
    scene.plant(&archive, 10, 100);
    scene.refused("wrong checksum").await;
    // No end, and no archive at all.
    scene.plant(&Forged::new().file("a", "x").0, 10, 100);
    scene.refused("is cut off").await;
    scene.plant(b"", 10, 100);
    scene.refused("is cut off").await;
    scene.plant(&[b'x'; 5000], 10, 100);
    scene.refused("wrong checksum").await;
}

/// A link that points out of the tree is what a tree may hold; it is kept, and never followed.
#[tokio::test]
async fn links_out_of_the_tree_are_kept_and_not_followed() {
    let scene = Scene::new().await;
    let outside = scene.data().join("outside");
    let archive = Forged::new().link("a", outside.to_str().unwrap()).link("b", "../outside/secret").end();
    scene.plant(&archive, 3, 0);
    forge(&scene.set, |m| {
        let limits = archive::Limits { entries: 3, bytes: 0 };
        m.parts[0].tree.as_mut().unwrap().listing = archive::check_stream(&archive[..], limits).unwrap();
    });
    let before = print(&outside);
    put_back(&scene.environment, &scene.set, None, &job()).await.unwrap();
    let root = scene.data().join("uploads");
    assert_eq!(std::fs::read_link(root.join("a")).unwrap(), outside);
    assert_eq!(names(&root), ["a", "b"]);
    // And the tree with such links gives way without what they point at.
    scene.plant(&Forged::new().file("x", "y").end(), 2, 1);
    forge(&scene.set, |m| {
        let archive = std::fs::read(scene.set.join("uploads.tar")).unwrap();
        let limits = archive::Limits { entries: 3, bytes: 9 };
        m.parts[0].tree.as_mut().unwrap().listing = archive::check_stream(&archive[..], limits).unwrap();
    });
    put_back(&scene.environment, &scene.set, None, &job()).await.unwrap();
    assert_eq!(print(&outside), before);
}

/// A bomb: a small file that unpacks to very much, and a manifest that says so or does not.
#[tokio::test]
async fn a_bomb_is_stopped_at_what_was_recorded_or_at_the_room_there_is() {
    let scene = Scene::new().await;
    let zeros = 64 << 20;
    let mut archive = Forged::new().header(b'0', b"bomb", b"", &format!("{zeros:011o}\0")).0;
    archive.resize(archive.len() + zeros + 1024, 0);
    let file = scene.set.join("uploads.tar.zst");
    let mut encoder = async_compression::tokio::write::ZstdEncoder::new(Vec::new());
    encoder.write_all(&archive).await.unwrap();
    encoder.shutdown().await.unwrap();
    let packed = encoder.into_inner();
    assert!(packed.len() < 100_000, "it is a bomb: {}", packed.len());
    std::fs::write(&file, &packed).unwrap();
    std::fs::remove_file(scene.set.join("uploads.tar")).unwrap();
    let vouch = |raw: u64, bytes: u64| {
        forge(&scene.set, |m| {
            let part = &mut m.parts[0];
            "uploads.tar.zst".clone_into(&mut part.file);
            part.compression = Some(Compression::Zstd);
            (part.bytes, part.raw_bytes) = (packed.len() as u64, raw);
            part.sha256 = hex::encode(sha2::Sha256::digest(&packed));
            let listing = &mut part.tree.as_mut().unwrap().listing;
            (listing.entries, listing.bytes) = (10, bytes);
        });
    };
    vouch(1 << 20, 1 << 40);
    scene.refused("it unpacks to 1.0 TiB and there are ").await;
    vouch(1 << 20, zeros as u64);
    scene.refused("unpacks to more than the 1048576 bytes recorded").await;
    vouch(archive.len() as u64, 1 << 20);
    scene.refused("the archive unpacks to more than the 1048576 bytes recorded").await;
}
