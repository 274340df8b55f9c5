//! Directories as parts of sets. What an archive keeps is tried in `archive/tests.rs`; here it is put back among other parts.

use super::{
    restore::{forge, put_back},
    *,
};
use crate::{
    config::PathRules,
    data::archive::tests::{awkward_tree, print},
};

pub(super) fn files(name: &str, path: &Path, exclude: &[&str]) -> Backup {
    let mut set = globset::GlobSetBuilder::new();
    for pattern in exclude {
        set.add(globset::Glob::new(pattern).unwrap());
    }
    let patterns = exclude.iter().map(|&pattern| pattern.to_owned()).collect();
    let set = (!exclude.is_empty()).then(|| set.build().unwrap());
    let exclude = PathRules { patterns, set };
    backup(name, BackupSource::Files { path: path.to_owned(), exclude })
}

pub(super) fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// What lies in a directory, by name.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_directory_is_again_what_it_was_and_twice_is_the_same() {
    for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data/odd 'name' ü");
        awkward_tree(&root);
        let before = print(&root);
        let source = Backup { compression, ..files("uploads", &root, &[]) };
        let report = take(dir.path(), vec![source.clone()], None, &job()).await.unwrap();
        assert_eq!(report.failures, []);
        let set = dir.path().join(report.set.unwrap());
        let tree = report.parts[0].tree.clone().unwrap();
        assert_eq!((tree.listing.entries, tree.notes), (47, Vec::new()));
        let environment = environment(vec![source]);
        for _ in 0..2 {
            std::fs::remove_dir_all(root.join("empty")).unwrap();
            write(&root.join("new/file"), "new");
            std::fs::write(root.join("big"), "changed").unwrap();
            let report = put_back(&environment, &set, None, &job()).await.unwrap();
            assert_eq!((report.restored[0].tables, report.restored[0].note.as_deref()), (47, None));
            assert!(print(&root) == before, "{compression:?}");
            assert_eq!(names(root.parent().unwrap()).len(), 1, "nothing else is left");
        }
        // A new machine has neither the directory nor the ones above it.
        std::fs::remove_dir_all(dir.path().join("data")).unwrap();
        put_back(&environment, &set, None, &job()).await.unwrap();
        assert!(print(&root) == before, "{compression:?}");
    }
}

#[tokio::test]
async fn a_set_is_restored_by_hand_with_the_line_in_its_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("uploads");
    awkward_tree(&root);
    let report = take(dir.path(), vec![files("uploads", &root, &[])], None, &job()).await.unwrap();
    let to = dir.path().join("by hand");
    std::fs::create_dir(&to).unwrap();
    let line = report.parts[0].restore.replace("EMPTY_DIRECTORY", &format!("'{}'", to.display()));
    let done = Command::new("sh").arg("-c").arg(&line).current_dir(dir.path().join(report.set.unwrap())).status();
    assert!(done.unwrap().success(), "{line}");
    assert!(print(&to) == print(&root));
}

#[tokio::test]
async fn what_is_excluded_stays_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("uploads");
    write(&root.join("a/kept"), "then");
    write(&root.join("a/x.tmp"), "then");
    let source = files("uploads", &root, &["**/*.tmp", "cache"]);
    let report = take(dir.path(), vec![source.clone()], None, &job()).await.unwrap();
    assert_eq!(report.parts[0].tree.as_ref().unwrap().listing.entries, 3);
    write(&root.join("a/kept"), "now");
    write(&root.join("a/x.tmp"), "now");
    write(&root.join("b/c/y.tmp"), "now");
    write(&root.join("cache/deep/page"), "now");
    write(&root.join("gone"), "now");
    put_back(&environment(vec![source]), &dir.path().join(report.set.unwrap()), None, &job()).await.unwrap();
    let text = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    assert_eq!(text("a/kept"), "then");
    assert_eq!(
        (text("a/x.tmp"), text("b/c/y.tmp"), text("cache/deep/page")),
        ("now".into(), "now".into(), "now".into())
    );
    assert_eq!(names(&root), ["a", "b", "cache"]);
}

#[tokio::test]
async fn a_part_that_fails_keeps_the_directory_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("data/one"), dir.path().join("data/two"));
    write(&one.join("x"), "then");
    write(&two.join("x"), "then");
    let backups = vec![files("one", &one, &[]), files("two", &two, &[])];
    let report = take(dir.path(), backups.clone(), None, &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    write(&one.join("x"), "now");
    write(&two.join("x"), "now");
    let before = print(&dir.path().join("data")).split_off(1);
    forge(&set, |m| m.parts[1].tree.as_mut().unwrap().listing.sha256 = "0".repeat(64));
    let all = environment(backups);
    let error = put_back(&all, &set, None, &job()).await.unwrap_err();
    assert!(error.to_string().contains("it holds 2 entries with 4 bytes, and should hold "), "{error}");
    assert!(error.left_data_alone());
    assert_eq!(print(&dir.path().join("data")).split_off(1), before);

    // What a kill leaves is removed before anything else.
    write(&dir.path().join("data/.one.refit-restore/half"), "made");
    let removed = discard_restore_leftovers(&all).unwrap();
    assert_eq!(removed, [dir.path().join("data/.one.refit-restore")]);
    assert_eq!(print(&dir.path().join("data")).split_off(1), before);
}

#[tokio::test]
async fn a_cancelled_restore_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("data/uploads");
    write(&root.join("x"), "then");
    let source = files("uploads", &root, &[]);
    let report = take(dir.path(), vec![source.clone()], None, &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    let job = job();
    job.cancel.cancel();
    let error = put_back(&environment(vec![source]), &set, None, &job).await.unwrap_err();
    assert!(matches!(error, DataError::Cancelled), "{error}");
    assert_eq!(names(&dir.path().join("data")), ["uploads"]);
}

#[tokio::test]
async fn a_directory_that_cannot_be_read_is_no_backup() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let half = dir.path().join("half");
    write(&half.join(".refit-restore/out"), "");
    for (path, expected) in [
        (&missing, "does not exist"),
        (&file, "is no directory: name the one that it is in"),
        (&half, "holds a restore that was interrupted: restore again first"),
    ] {
        let report = take(dir.path(), vec![files("uploads", path, &[])], None, &job()).await.unwrap();
        assert_eq!(report.set, None);
        assert!(report.failures[0].error.ends_with(expected), "{report:?}");
        assert_eq!(set_dirs(dir.path()), Vec::<PathBuf>::new());
    }
}

#[tokio::test]
async fn a_set_is_tried_out_by_unpacking_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("uploads");
    awkward_tree(&root);
    let report = take(dir.path(), vec![files("uploads", &root, &[])], None, &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    let request = VerifyRequest { environment: None, set: &set, parts: &[], depth: Depth::Restore };
    let verified = verify_set(request, Reach::default(), &job()).await.unwrap();
    assert!(verified.ok, "{verified:#?}");
    let checks: Vec<_> = verified.parts[0].checks.iter().map(|check| check.detail.as_str()).collect();
    assert_eq!(
        checks,
        ["as recorded", "47 entries with 1.1 MiB, as recorded", "it was put back, and thrown away again"]
    );
    assert_eq!(names(&set), ["manifest.json", "uploads.tar.gz"]);
    forge(&set, |m| m.parts[0].tree.as_mut().unwrap().listing.entries = 48);
    let verified = verify_set(request, Reach::default(), &job()).await.unwrap();
    assert!(!verified.ok && verified.problems[0].contains("should hold 48 entries"), "{verified:#?}");
}

#[tokio::test]
async fn a_full_disk_is_a_clean_failure_of_a_backup_and_of_a_restore() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("uploads");
    write(&root.join("small"), "fits");
    std::fs::write(root.join("large"), noise(2 << 20)).unwrap();
    let source = files("uploads", &root, &[]);
    let disk = SmallDisk::mount();
    let report = take(disk.path(), vec![source.clone()], None, &job()).await.unwrap();
    assert!(report.failures[0].error.contains("no space left on"), "{report:?}");
    assert_eq!(set_dirs(disk.path()), Vec::<PathBuf>::new());

    let report = take(dir.path(), vec![source], None, &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    let live = disk.path().join("uploads");
    write(&live.join("x"), "live");
    let environment = environment(vec![files("uploads", &live, &[])]);
    for (bytes, expected) in [(None, "it unpacks to 2.0 MiB and there are "), (Some(1), "recorded")] {
        if let Some(bytes) = bytes {
            forge(&set, |m| m.parts[0].tree.as_mut().unwrap().listing.bytes = bytes);
        }
        let error = put_back(&environment, &set, None, &job()).await.unwrap_err();
        assert!(error.to_string().contains(expected) && error.left_data_alone(), "{error}");
        assert_eq!(names(disk.path()), ["guestbook", "uploads"]);
        assert_eq!(std::fs::read_to_string(live.join("x")).unwrap(), "live");
    }
    // Room for what it holds, and not for the many directories that it comes in.
    let many = dir.path().join("many");
    (0..600).for_each(|n| write(&many.join(format!("{n}/x")), "x"));
    let report = take(dir.path(), vec![files("uploads", &many, &[])], None, &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    let error = put_back(&environment, &set, None, &job()).await.unwrap_err();
    assert!(error.to_string().contains("no space left for the unpacked") && error.left_data_alone(), "{error}");
    assert_eq!(names(disk.path()), ["guestbook", "uploads"]);
    assert_eq!(std::fs::read_to_string(live.join("x")).unwrap(), "live");
}

/// The exchange of one would take the other's place away.
#[tokio::test]
async fn a_part_inside_another_is_refused_before_anything_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("uploads");
    write(&root.join("sub/x"), "then");
    let backups = vec![files("outer", &root, &[]), files("inner", &root.join("sub"), &[])];
    let report = take(dir.path(), backups.clone(), None, &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    let error = put_back(&environment(backups), &set, None, &job()).await.unwrap_err();
    assert!(
        matches!(&error, DataError::Unfit { why, .. } if why.starts_with("`inner` lies inside `outer`")),
        "{error}"
    );
}
