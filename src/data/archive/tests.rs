//! Trees packed, unpacked and exchanged. Archives that mean harm are in `data/tests/hostile.rs`, restored as any set is.

use std::{
    ffi::OsStr,
    fs::{self, File, FileTimes},
    io::Cursor,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

use globset::GlobSetBuilder;

use super::{
    exchange::{STAGING, Stage, discard},
    *,
};

const PLENTY: Limits = Limits { entries: 1_000_000, bytes: 1 << 40 };

fn exclude(patterns: &[&str]) -> Exclude {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(globset::Glob::new(pattern).unwrap());
    }
    Exclude::new(Some(set.build().unwrap()))
}

/// Everything of a tree that is kept: path, kind, mode, owner, time, target or content, and which names are one file.
pub(in crate::data) fn print(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut first_names = std::collections::HashMap::new();
    look(root, Path::new(""), &mut lines, &mut first_names);
    lines
}

fn look(root: &Path, path: &Path, lines: &mut Vec<String>, first: &mut std::collections::HashMap<u64, PathBuf>) {
    let full = root.join(path);
    let found = fs::symlink_metadata(&full).unwrap();
    let kind = found.file_type();
    let what = if kind.is_symlink() {
        format!("-> {:?}", fs::read_link(&full).unwrap())
    } else if kind.is_file() {
        let same = first.entry(found.ino()).or_insert_with(|| path.to_owned()).clone();
        format!("{} first {same:?}", hex::encode(Sha256::digest(fs::read(&full).unwrap())))
    } else {
        String::new()
    };
    let owner = (found.uid(), found.gid());
    let time = (found.mtime(), found.mtime_nsec());
    lines.push(format!(
        "{path:?} {:o} {owner:?} {time:?} {} {what}",
        found.mode(),
        if kind.is_dir() { 0 } else { found.len() }
    ));
    if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            look(root, &path.join(name), lines, first);
        }
    }
}

/// One of everything, as root if the tests are run by root.
pub(in crate::data) fn awkward_tree(root: &Path) {
    let deep: PathBuf = (0..30).map(|n| format!("a directory with a long name, number {n}")).collect();
    fs::create_dir_all(root.join(&deep)).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::create_dir(root.join("closed")).unwrap();
    let odd = [
        OsStr::from_bytes(b"not \xff\xfe utf-8"),
        OsStr::new("line\nbreak and \"quotes\" and 'these'"),
        OsStr::new("-rf"),
        OsStr::new("emoji 🦀 é"),
        OsStr::new(" "),
    ];
    for (n, name) in odd.iter().enumerate() {
        fs::write(root.join(name), vec![b'x'; n * 511]).unwrap();
    }
    fs::write(root.join(OsStr::from_bytes(&[b'n'; 255])), b"the longest name").unwrap();
    fs::write(root.join(&deep).join("at the bottom"), b"deep").unwrap();
    fs::write(root.join("big"), (0..30_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    fs::write(root.join("closed/secret"), b"s").unwrap();
    File::create(root.join("sparse")).unwrap().set_len(1_000_000).unwrap();
    fs::hard_link(root.join("big"), root.join("empty/../the same as big")).unwrap();
    symlink("/etc/passwd", root.join("absolute link")).unwrap();
    symlink("x".repeat(300), root.join("link with a long target")).unwrap();
    symlink("../../..", root.join("closed/up")).unwrap();
    for (name, mode) in [("-rf", 0o4755), (" ", 0o000), ("closed", 0o1500), ("empty", 0o2777), ("big", 0o640)] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let before_1970 = UNIX_EPOCH - Duration::new(1_000_000, 123_456_789);
    let later = UNIX_EPOCH + Duration::new(10_000_000_000, 987_654_321);
    for (name, time) in [("big", before_1970), ("sparse", later), ("empty", before_1970)] {
        File::open(root.join(name)).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(root.join("sparse"), Some(4_000_000_000), Some(33)).unwrap();
        std::os::unix::fs::lchown(root.join("absolute link"), Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::chown(root, Some(33), Some(33)).unwrap();
    }
}

fn packed(root: &Path, exclude: &Exclude) -> Packed<Vec<u8>> {
    pack(root, exclude, Vec::new()).unwrap()
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    awkward_tree(&from);
    let packed = packed(&from, &Exclude::default());
    assert_eq!(packed.notes.lines(), Vec::<String>::new());
    fs::create_dir(&to).unwrap();
    let unpacked = unpack(&packed.sink[..], &to, PLENTY).unwrap();
    assert_eq!(unpacked.notes.lines(), Vec::<String>::new());
    assert_eq!(print(&to), print(&from));
    assert_eq!(unpacked.listing, packed.listing);
    assert_eq!(check_stream(&packed.sink[..], PLENTY).unwrap(), packed.listing);
    let again = pack(&to, &Exclude::default(), io::sink()).unwrap();
    assert_eq!(again.listing, packed.listing);
    assert_eq!((packed.listing.entries, packed.listing.bytes), (47, 1_125_131));
}

/// A set has to be readable without Refit.
#[test]
fn gnu_tar_reads_what_we_pack() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    awkward_tree(&from);
    fs::write(dir.path().join("a.tar"), packed(&from, &Exclude::default()).sink).unwrap();
    fs::create_dir(&to).unwrap();
    let tar = |args: &[&str], at: &Path| {
        let done = Command::new("tar").args(args).current_dir(at).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    tar(&["--extract", "--file=../a.tar", "--numeric-owner", "--preserve-permissions"], &to);
    assert_eq!(print(&to), print(&from));
}

#[test]
fn what_another_tool_packed_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("top");
    awkward_tree(&from);
    fs::write(from.join("cache.tmp"), b"left out").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, from.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for format in ["--format=pax", "--format=gnu"] {
        let args = ["--create", "--sort=name", format, "--numeric-owner", "--file=top.tar", "top"];
        assert!(Command::new("tar").args(args).current_dir(dir.path()).status().unwrap().success());
        let source = File::open(dir.path().join("top.tar")).unwrap();
        let anew = transcode(source, &exclude(&["*.tmp"]), Vec::new()).unwrap();
        assert_eq!(anew.listing, packed(&from, &exclude(&["*.tmp"])).listing, "{format}");
        assert_eq!(anew.notes.lines(), ["`pipe` is left out: it is a pipe"]);
        let to = tempfile::tempdir().unwrap();
        assert_eq!(unpack(&anew.sink[..], to.path(), PLENTY).unwrap().listing, anew.listing);
    }
}

#[test]
fn what_is_no_file_is_left_out_with_a_note_and_what_is_excluded_without() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("cache/deep")).unwrap();
    fs::write(root.join("cache/deep/x"), b"x").unwrap();
    fs::write(root.join("kept"), b"x").unwrap();
    fs::create_dir(root.join(STAGING)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let packed = packed(root, &exclude(&["cache"]));
    assert_eq!(packed.listing.entries, 2);
    assert_eq!(packed.notes.lines(), ["`socket` is left out: it is no file, but a Socket"]);
}

/// A file that changes between two reads of it, which the archive's own writing sets off.
struct Changing<F: FnMut()> {
    inner: Vec<u8>,
    change: F,
}

impl<F: FnMut()> io::Write for Changing<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() == BUFFER {
            (self.change)();
        }
        self.inner.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_has_the_size_it_had() {
    for (change, name) in [(0_u64, "shrinks"), (900_000, "grows")] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, vec![7; 300_000]).unwrap();
        fs::write(dir.path().join("b"), b"after it").unwrap();
        let sink = Changing {
            inner: Vec::new(),
            change: || File::options().write(true).open(&file).unwrap().set_len(change).unwrap(),
        };
        let packed = pack(dir.path(), &Exclude::default(), sink).unwrap();
        assert_eq!(packed.notes.lines(), ["`a` changed while it was read"], "{name}");
        let to = tempfile::tempdir().unwrap();
        let unpacked = unpack(&packed.sink.inner[..], to.path(), PLENTY).unwrap();
        assert_eq!(unpacked.listing, packed.listing);
        assert_eq!(fs::metadata(to.path().join("a")).unwrap().len(), 300_000);
        assert_eq!(fs::read(to.path().join("b")).unwrap(), b"after it");
    }
}

#[test]
fn limits_hold_and_a_cut_archive_is_none() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), vec![1; 100_000]).unwrap();
    let all = packed(dir.path(), &Exclude::default()).sink;
    let refused = |bytes: &[u8], limits: Limits| {
        let to = tempfile::tempdir().unwrap();
        let by_unpacking = unpack(bytes, to.path(), limits).unwrap_err().to_string();
        assert!(by_unpacking.ends_with(&check_stream(bytes, limits).unwrap_err().to_string()));
        by_unpacking
    };
    assert!(refused(&all, Limits { entries: 1, ..PLENTY }).contains("more than the 1 entries recorded"));
    assert!(refused(&all, Limits { bytes: 99_999, ..PLENTY }).contains("more than the 99999 bytes recorded"));
    for cut in [0, 100, 512, 600, 1024, 50_000, all.len() - 1024] {
        assert!(refused(&all[..cut], PLENTY).contains("the archive is cut off"), "{cut}");
    }
}

/// A tree and the one that is to replace it.
fn scene(dir: &Path) -> (PathBuf, Vec<u8>) {
    let root = dir.join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("same name"), b"new").unwrap();
    fs::write(root.join("only new"), b"new").unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o751)).unwrap();
    let archive = packed(&root, &Exclude::default()).sink;
    fs::write(root.join("same name"), b"old").unwrap();
    fs::rename(root.join("only new"), root.join("only old")).unwrap();
    fs::create_dir_all(root.join("var/cache")).unwrap();
    fs::write(root.join("var/cache/page"), b"excluded").unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    (root, archive)
}

#[test]
fn an_exchange_replaces_everything_but_what_is_excluded() {
    for within in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (root, archive) = scene(dir.path());
        let stage = Stage::prepare(&root, within).unwrap();
        unpack(Cursor::new(&archive), &stage.tree(), PLENTY).unwrap();
        stage.carry_over(&exclude(&["var/cache"])).unwrap();
        stage.sync().unwrap();
        let inode = fs::metadata(&root).unwrap().ino();
        let replaced = stage.exchange().unwrap();
        assert_eq!(fs::metadata(&root).unwrap().ino() == inode, within, "by content the directory itself stays");
        replaced.remove().unwrap();
        let names: Vec<_> =
            print(&root).into_iter().filter_map(|line| line.split('"').nth(1).map(str::to_owned)).collect();
        assert_eq!(names, ["", "only new", "same name", "var", "var/cache", "var/cache/page"]);
        assert_eq!(fs::read(root.join("same name")).unwrap(), b"new");
        assert_eq!(fs::read(root.join("var/cache/page")).unwrap(), b"excluded");
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o751);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}

#[test]
fn an_exchange_that_was_given_up_changes_nothing() {
    for within in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (root, archive) = scene(dir.path());
        // The time of the directory itself shows that something was made in it and removed.
        let before = print(&root).split_off(1);
        let stage = Stage::prepare(&root, within).unwrap();
        assert!(unpack(Cursor::new(&archive[..600]), &stage.tree(), PLENTY).is_err());
        drop(stage);
        assert_eq!(print(&root).split_off(1), before);
        let stage = Stage::prepare(&root, within).unwrap();
        unpack(Cursor::new(&archive), &stage.tree(), PLENTY).unwrap();
        stage.carry_over(&exclude(&["var/cache"])).unwrap();
        // As after SIGKILL: nothing is tidied up.
        std::mem::forget(stage);
        assert_eq!(discard(&root).unwrap().len(), 1);
        assert_eq!(print(&root).split_off(1), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

/// Every state that a kill can leave between the mark and the end, made by hand.
#[test]
fn an_exchange_by_content_goes_on_from_wherever_it_was_ended() {
    for moved_out in 0..=3 {
        for moved_in in 0..=2 {
            if moved_out < 3 && moved_in > 0 {
                continue;
            }
            let dir = tempfile::tempdir().unwrap();
            let (root, archive) = scene(dir.path());
            let stage = Stage::prepare(&root, true).unwrap();
            unpack(Cursor::new(&archive), &stage.tree(), PLENTY).unwrap();
            std::mem::forget(stage);
            let side = root.join(STAGING);
            let mark = if moved_in > 0 { "in" } else { "out" };
            fs::write(side.join(mark), b"").unwrap();
            for name in ["same name", "only old", "var"].iter().take(moved_out) {
                fs::rename(root.join(name), side.join("old").join(name)).unwrap();
            }
            for name in ["same name", "only new"].iter().take(moved_in) {
                fs::rename(side.join("new").join(name), root.join(name)).unwrap();
            }
            discard(&root).unwrap();
            let names: Vec<_> =
                print(&root).into_iter().filter_map(|line| line.split('"').nth(1).map(str::to_owned)).collect();
            assert_eq!(names, ["", "only new", "same name"], "{moved_out} {moved_in}");
            assert_eq!(fs::read(root.join("same name")).unwrap(), b"new");
            assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o751);
            assert!(discard(&root).unwrap().is_empty());
        }
    }
}
