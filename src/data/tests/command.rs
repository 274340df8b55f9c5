//! The user's own commands as parts of sets.

use std::collections::BTreeMap;

use super::{
    restore::put_back,
    trees::{self, files, write},
    *,
};
use crate::config::BackupCommand;

fn command(name: &str, dump: &str, restore: &str) -> Backup {
    let secrets = BTreeMap::from([("KEY".to_owned(), Secret::new("hunter22"))]);
    let env = BTreeMap::from([("PLACE".to_owned(), "here".to_owned())]);
    let (dump, restore) = (dump.to_owned(), restore.to_owned());
    backup(
        name,
        BackupSource::Command(Box::new(BackupCommand { dump, restore, rehearse: None, container: None, env, secrets })),
    )
}

#[tokio::test]
async fn what_it_prints_it_gets_back() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let much: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&from, &much).unwrap();
    let dump = format!("test $KEY$PLACE = hunter22here && test -z \"$USER\" && cat {}", from.display());
    let source = command("own", &dump, &format!("cat > {}", to.display()));
    for compression in [Compression::Gzip, Compression::None] {
        let source = Backup { compression, ..source.clone() };
        let report = take(dir.path(), vec![source.clone()], None, &job()).await.unwrap();
        assert_eq!((&report.failures[..], report.parts[0].raw_bytes), (&[][..], much.len() as u64));
        let set = dir.path().join(report.set.unwrap());
        let report = put_back(&environment(vec![source]), &set, None, &job()).await.unwrap();
        let note = report.restored[0].note.as_deref();
        assert_eq!(note, Some("`own` was put back by its own command, which nothing undoes"));
        assert_eq!(std::fs::read(&to).unwrap(), much);
        std::fs::remove_file(&to).unwrap();
    }
}

#[tokio::test]
async fn only_success_and_something_printed_is_a_dump() {
    let dir = tempfile::tempdir().unwrap();
    for (dump, expected) in [
        ("echo half; echo oops >&2; exit 3", "`dump` ended with exit code 3: oops"),
        ("echo half; kill -9 $$", "`dump` ended with exit code 137: it said nothing"),
        ("true", "`dump` reported success and printed nothing"),
    ] {
        let report = take(dir.path(), vec![command("own", dump, "cat")], None, &job()).await.unwrap();
        assert_eq!((report.set, report.failures[0].error.as_str()), (None, expected));
        assert_eq!(set_dirs(dir.path()), Vec::<PathBuf>::new());
    }
    let marker = dir.path().join("ended");
    let slow = Backup {
        timeout: Duration::from_millis(300),
        ..command("own", &format!("trap 'touch {}; exit' TERM; echo x; sleep 1000 & wait", marker.display()), "cat")
    };
    let report = take(dir.path(), vec![slow], None, &job()).await.unwrap();
    assert!(report.failures[0].error.contains("took longer than 300ms"), "{report:?}");
    assert!(marker.exists(), "it was ended, not left");
}

#[tokio::test]
async fn it_comes_when_all_others_are_ready_and_before_they_change_anything() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = dir.path().join("data/uploads");
    write(&uploads.join("x"), "then");
    let seen = dir.path().join("seen");
    let look =
        format!("cat {0}/x {0}/../.uploads.refit-restore/x > {1}; cat >> {1}", uploads.display(), seen.display());
    let backups = vec![command("own", "echo dumped", &look), files("uploads", &uploads, &[])];
    let report = take(dir.path(), backups.clone(), None, &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    write(&uploads.join("x"), "now ");
    let report = put_back(&environment(backups), &set, None, &job()).await.unwrap();
    let names: Vec<_> = report.restored.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(names, ["own", "uploads"], "told in the order of the set");
    assert_eq!(std::fs::read_to_string(&seen).unwrap(), "now thendumped\n");
    assert_eq!(std::fs::read_to_string(uploads.join("x")).unwrap(), "then");
}

#[tokio::test]
async fn one_that_fails_keeps_the_others_as_they_are_and_says_that_its_own_data_may_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = dir.path().join("data/uploads");
    write(&uploads.join("x"), "then");
    let restores = ["exit 0", "echo no >&2; exit 9"].map(|end| format!("cat > /dev/null; {end}"));
    let backups = vec![
        command("good", "echo x", &restores[0]),
        files("uploads", &uploads, &[]),
        command("bad", "echo x", &restores[1]),
    ];
    let report = take(dir.path(), backups.clone(), None, &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    write(&uploads.join("x"), "now");
    let error = put_back(&environment(backups), &set, None, &job()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("`bad` was not put back into "), "{text}");
    assert!(
        text.ends_with("`restore` ended with exit code 9: no; `good` was put back already; restore it again"),
        "{text}"
    );
    assert!(!error.left_data_alone());
    assert_eq!(std::fs::read_to_string(uploads.join("x")).unwrap(), "now");
    assert_eq!(trees::names(&dir.path().join("data")), ["uploads"]);
}

#[tokio::test]
async fn it_is_tried_out_by_a_command_of_its_own_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let source = command("own", "echo dumped", "exit 1");
    let report = take(dir.path(), vec![source.clone()], None, &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    let with = |rehearse: Option<&str>| {
        let BackupSource::Command(mut command) = source.source.clone() else { panic!("{source:?}") };
        command.rehearse = rehearse.map(str::to_owned);
        environment(vec![Backup { source: BackupSource::Command(command), ..source.clone() }])
    };
    for (rehearse, expected) in [
        (Some("test \"$(cat)\" = dumped"), None),
        (Some("cat; exit 4"), Some("`rehearse` ended with exit code 4")),
        (None, Some("cannot be tried out unless its `[[backup]]` has a `rehearse` command")),
    ] {
        let environment = with(rehearse);
        let request = VerifyRequest { environment: Some(&environment), set: &set, parts: &[], depth: Depth::Restore };
        let verified = verify_set(request, Reach::default(), &job()).await.unwrap();
        assert_eq!(verified.ok, expected.is_none(), "{verified:#?}");
        assert!(expected.is_none_or(|text| verified.problems[0].contains(text)), "{verified:#?}");
    }
}
