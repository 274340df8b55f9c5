//! Volumes of the real engine: directly, as root does it, and through a helper, as everyone else has to.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{
    postgres::engine,
    restore::forge,
    trees::{files, write},
    *,
};
use crate::{
    data::archive::tests::{awkward_tree, print},
    model::EnvironmentKey,
    runtime::{Result as RuntimeResult, Scratch, ScratchContainer, ScratchSpec, VolumeSight, docker::Engine},
};

/// The image of the tests' helpers: `/bin/busybox` and its names.
const IMAGE: &str = "refit-test/postgres:15";

fn docker(args: &[&str]) -> String {
    let done = Command::new("docker").args(args).output().unwrap();
    assert!(done.status.success(), "{args:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// A volume that goes when this does.
pub(super) struct Volume(pub String);

impl Volume {
    pub(super) fn make() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("refit-data-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        docker(&["volume", "create", &name]);
        Self(name)
    }

    pub(super) fn place(&self) -> PathBuf {
        docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", &self.0]).into()
    }

    pub(super) fn source(&self, exclude: &[&str]) -> Backup {
        let BackupSource::Files { exclude, .. } = files("uploads", Path::new("/"), exclude).source else { panic!() };
        backup("uploads", BackupSource::Volume { volume: self.0.clone(), exclude })
    }

    fn exists(&self) -> bool {
        Command::new("docker").args(["volume", "inspect", &self.0]).output().unwrap().status.success()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["volume", "rm", "--force", &self.0]).output();
    }
}

/// The engine as one who is not root sees it: where volumes lie is of no use.
#[derive(Debug)]
struct NotRoot(Engine);

#[async_trait]
impl Scratch for NotRoot {
    async fn open(&self, spec: &ScratchSpec<'_>) -> RuntimeResult<Box<dyn ScratchContainer>> {
        self.0.open(spec).await
    }

    async fn volume(&self, name: &str) -> RuntimeResult<Option<VolumeSight>> {
        Ok(self.0.volume(name).await?.map(|seen| VolumeSight { place: None, ..seen }))
    }

    async fn any_image(&self) -> RuntimeResult<Option<String>> {
        Ok(Some(IMAGE.to_owned()))
    }

    async fn sweep_scratch(&self, key: &EnvironmentKey) -> RuntimeResult<Vec<String>> {
        self.0.sweep_scratch(key).await
    }
}

struct World {
    engine: Engine,
    other: NotRoot,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self { engine: engine(), other: NotRoot(engine()), dir: tempfile::tempdir().unwrap() }
    }

    fn reach(&self, directly: bool) -> Reach<'_> {
        let scratch: &dyn Scratch = if directly { &self.engine } else { &self.other };
        Reach { containers: Some(&self.engine), scratch: Some(scratch) }
    }

    async fn take(&self, source: &Backup, directly: bool) -> BackupReport {
        let environment = environment(vec![source.clone()]);
        let request = SetRequest {
            environment: &environment,
            parts: &[],
            deployment: None,
            commit: None,
            reason: "a test",
            backups_dir: self.dir.path(),
            context: &SetContext::default(),
        };
        create_set(request, self.reach(directly), &job()).await.unwrap()
    }

    async fn put_back(&self, source: &Backup, set: &Path, directly: bool) -> Result<RestoreReport, DataError> {
        let environment = environment(vec![source.clone()]);
        restore_set(RestoreRequest { environment: &environment, set, parts: &[] }, self.reach(directly), &job()).await
    }
}

/// Without what the engine cuts off: parts of seconds, times before 1970 or after 2262, and the directory's own time, which an exchange of its content changes.
fn rounded(lines: Vec<String>) -> Vec<String> {
    let cut = |line: String| {
        let (head, rest) = line.rsplit_once(") (").unwrap();
        let (time, tail) = rest.split_once(')').unwrap();
        let seconds = time.split_once(',').unwrap().0;
        // What nanoseconds since 1970 in 63 bits cannot say.
        let is_kept = seconds.parse::<i64>().is_ok_and(|s| (0..=i64::MAX / 1_000_000_000).contains(&s));
        let seconds = if is_kept { seconds } else { "0" };
        format!("{head}) ({seconds}){tail}")
    };
    lines.into_iter().skip(1).map(cut).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_a_volume_is_again_what_it_was_by_either_way() {
    for directly in [true, false] {
        let world = World::new();
        let volume = Volume::make();
        let place = volume.place();
        awkward_tree(&place);
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o751)).unwrap();
        let before = if directly { print(&place).split_off(1) } else { rounded(print(&place)) };
        let source = volume.source(&[]);
        let report = world.take(&source, directly).await;
        assert_eq!(report.failures, [], "directly: {directly}");
        assert_eq!(report.parts[0].tree.as_ref().unwrap().listing.entries, 47);
        let set = world.dir.path().join(report.set.unwrap());
        for round in 0..2 {
            write(&place.join("new/file"), "new");
            std::fs::write(place.join("big"), "changed").unwrap();
            std::fs::remove_dir_all(place.join("closed")).unwrap();
            std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o700)).unwrap();
            let report = world.put_back(&source, &set, directly).await.unwrap();
            assert_eq!((report.restored[0].tables, report.restored[0].note.as_deref()), (47, None));
            let after = if directly { print(&place).split_off(1) } else { rounded(print(&place)) };
            for (after, before) in after.iter().zip(&before) {
                assert_eq!(after, before, "directly: {directly}, round {round}");
            }
            assert_eq!(after.len(), before.len());
            assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o751);
        }
        let request = VerifyRequest { environment: None, set: &set, parts: &[], depth: Depth::Restore };
        let verified = verify_set(request, world.reach(directly), &job()).await.unwrap();
        assert!(verified.ok, "{verified:#?}");
    }
    assert_eq!(helpers(), "", "no helper is left");
}

fn helpers() -> String {
    let all = docker(&["ps", "--all", "--filter", "label=refit.role=scratch", "--format", "{{.Names}} {{.Labels}}"]);
    let mine = format!("refit.owner={}.", std::process::id());
    all.lines().filter(|line| line.contains(&mine)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_a_volume_that_is_gone_is_made_again() {
    for directly in [true, false] {
        let world = World::new();
        let volume = Volume::make();
        write(&volume.place().join("a/b"), "kept");
        let source = volume.source(&[]);
        let set = world.dir.path().join(world.take(&source, directly).await.set.unwrap());
        docker(&["volume", "rm", &volume.0]);
        let left = present(&environment(vec![source.clone()]), world.reach(directly), &job()).await;
        assert_eq!(left.backups.len(), 0);
        let gone = world.take(&source, directly).await;
        assert_eq!(gone.failures[0].error, format!("there is no volume `{}`", volume.0));
        assert!(!volume.exists(), "looking for it does not make it");
        world.put_back(&source, &set, directly).await.unwrap();
        assert_eq!(std::fs::read_to_string(volume.place().join("a/b")).unwrap(), "kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_a_volume_that_cannot_be_put_back_stays_as_it_is() {
    for directly in [true, false] {
        let world = World::new();
        let volume = Volume::make();
        let place = volume.place();
        write(&place.join("a"), "then");
        let source = volume.source(&[]);
        let set = world.dir.path().join(world.take(&source, directly).await.set.unwrap());
        write(&place.join("a"), "now");
        forge(&set, |m| m.parts[0].tree.as_mut().unwrap().listing.entries = 7);
        let error = world.put_back(&source, &set, directly).await.unwrap_err();
        assert!(error.to_string().contains("and should hold 7 entries") && error.left_data_alone(), "{error}");
        assert_eq!(std::fs::read_to_string(place.join("a")).unwrap(), "now");
        assert_eq!(trees::names(&place), ["a"]);
        forge(&set, |m| m.parts[0].tree.as_mut().unwrap().listing.entries = 2);

        // A restore that was killed in the middle of the exchange: no backup of that, and the next restore goes on first.
        write(&place.join(".refit-restore/out"), "");
        write(&place.join(".refit-restore/new/b"), "half");
        write(&place.join(".refit-restore/old/c"), "old");
        let refused = world.take(&source, directly).await;
        assert!(refused.failures[0].error.contains("restore again first"), "{directly}: {refused:?}");
        world.put_back(&source, &set, directly).await.unwrap();
        assert_eq!(trees::names(&place), ["a"]);
        assert_eq!(std::fs::read_to_string(place.join("a")).unwrap(), "then");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_what_is_excluded_of_a_volume_stays_or_is_refused() {
    let world = World::new();
    let volume = Volume::make();
    let place = volume.place();
    write(&place.join("a"), "then");
    write(&place.join("x.tmp"), "then");
    let source = volume.source(&["*.tmp"]);
    for directly in [true, false] {
        let report = world.take(&source, directly).await;
        assert_eq!(report.parts[0].tree.as_ref().unwrap().listing.entries, 2, "{report:?}");
    }
    let set = world.dir.path().join(world.take(&source, true).await.set.unwrap());
    write(&place.join("a"), "now");
    write(&place.join("x.tmp"), "now");
    let error = world.put_back(&source, &set, false).await.unwrap_err();
    assert!(error.to_string().contains("what `exclude` names would be lost"), "{error}");
    world.put_back(&source, &set, true).await.unwrap();
    let text = |name: &str| std::fs::read_to_string(place.join(name)).unwrap();
    assert_eq!((text("a"), text("x.tmp")), ("then".to_owned(), "now".to_owned()));
}
