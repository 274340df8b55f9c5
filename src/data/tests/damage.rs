//! Threat 33: a set that is not what was written is found before anything is changed.

use std::time::SystemTime;

use super::{
    postgres::{Container, engine, until},
    restore::put_back,
    trees::{files, names, write},
    *,
};
use crate::{config::BackupCommand, data::archive::tests::print, runtime::docker::Engine};

/// Bytes that are damaged, one at a time.
const FLIPS: u32 = 200;

/// Numbers that look random and are the same for the same seed (splitmix64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A set of several parts, each of which would change something if it were put back.
struct Scene {
    dir: tempfile::TempDir,
    environment: Environment,
    set: PathBuf,
    containers: Option<Engine>,
}

impl Scene {
    async fn new(more: Vec<Backup>, containers: Option<Engine>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        write(&live.join("uploads/one"), &"words and words ".repeat(40));
        write(&live.join("more/two"), "two");
        let database = live.join("app.db");
        make_example_database(&database).await.unwrap();
        let touched = live.join("the command was run");
        let command = BackupCommand {
            dump: "seq 1 2000".to_owned(),
            restore: format!("touch '{}'; cat > /dev/null", touched.display()),
            rehearse: None,
            container: None,
            env: Default::default(),
            secrets: Default::default(),
        };
        let mut backups = vec![
            files("uploads", &live.join("uploads"), &[]),
            Backup { compression: Compression::Zstd, ..files("more", &live.join("more"), &[]) },
            backup("app", BackupSource::Sqlite { path: database }),
            Backup { compression: Compression::None, ..backup("own", BackupSource::Command(Box::new(command))) },
        ];
        backups.extend(more);
        let exec = containers.as_ref().map(|engine| engine as &dyn ContainerExec);
        let report = take(dir.path(), backups.clone(), exec, &job()).await.unwrap();
        assert_eq!(report.failures, []);
        let set = dir.path().join(report.set.unwrap());
        write(&live.join("uploads/since"), "written since");
        Self { dir, environment: environment(backups), set, containers }
    }

    fn world(&self) -> Vec<String> {
        print(&self.dir.path().join("live"))
    }

    /// Neither looking nor restoring takes the set for a good one, and nothing is changed.
    async fn refused(&self, before: &[String], what: &str) {
        let request = VerifyRequest { environment: None, set: &self.set, parts: &[], depth: Depth::Checksums };
        let looked = verify_set(request, Reach::default(), &job()).await;
        assert!(looked.as_ref().map_or(true, |report| !report.ok), "{what}: {looked:#?}");
        let exec = self.containers.as_ref().map(|engine| engine as &dyn ContainerExec);
        let error = put_back(&self.environment, &self.set, exec, &job()).await;
        let error = error.expect_err(what);
        assert!(
            matches!(error, DataError::Damaged { .. } | DataError::Manifest { .. } | DataError::Io { .. }),
            "{what}: {error}"
        );
        assert!(self.world() == before, "{what}: changed");
    }

    async fn every_flip_is_found(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let seed = std::env::var("REFIT_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::try_from(now.as_nanos() & u128::from(u64::MAX)).unwrap());
        let mut draw = Draw(seed);
        let before = self.world();
        let files = names(&self.set);
        let sizes: Vec<u64> = files.iter().map(|file| self.set.join(file).metadata().unwrap().len()).collect();
        let mut hits = vec![0; files.len()];
        for n in 0..FLIPS {
            // Half of them anywhere in the set, half in a file that is drawn first: small files are hit too.
            let (index, offset) = if n % 2 == 0 {
                let mut at = draw.below(sizes.iter().sum());
                let index = sizes
                    .iter()
                    .position(|size| {
                        if at < *size {
                            true
                        } else {
                            at -= size;
                            false
                        }
                    })
                    .unwrap();
                (index, at)
            } else {
                let index = usize::try_from(draw.below(files.len() as u64)).unwrap();
                (index, draw.below(sizes[index]))
            };
            let mask = u8::try_from(1 + draw.below(255)).unwrap();
            let path = self.set.join(&files[index]);
            let good = std::fs::read(&path).unwrap();
            let mut bad = good.clone();
            bad[usize::try_from(offset).unwrap()] ^= mask;
            std::fs::write(&path, bad).unwrap();
            let what = format!("REFIT_TEST_SEED={seed}: {} at {offset} ^ {mask:#04x}", files[index]);
            self.refused(&before, &what).await;
            std::fs::write(&path, good).unwrap();
            hits[index] += 1;
        }
        assert!(hits.iter().all(|hits| *hits > 0), "REFIT_TEST_SEED={seed}: {hits:?} of {files:?}");
        // And it is the flips that were found.
        let exec = self.containers.as_ref().map(|engine| engine as &dyn ContainerExec);
        put_back(&self.environment, &self.set, exec, &job()).await.unwrap();
        assert!(self.world() != before);
    }
}

#[tokio::test]
async fn a_flipped_byte_is_found_wherever_it_is() {
    Scene::new(Vec::new(), None).await.every_flip_is_found().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_a_flipped_byte_in_a_set_with_a_database_is_found_wherever_it_is() {
    let db = Container::postgres().await;
    db.psql("postgres", "CREATE DATABASE guestbook");
    db.psql("guestbook", "CREATE TABLE guests AS SELECT n, md5(n::text) FROM generate_series(1, 500) n");
    until("it is there", || db.try_psql("guestbook", "SELECT count(*) FROM guests").status.success()).await;
    let source = backup("guestbook", postgres_in(&db.0, "guestbook", PostgresFormat::Custom));
    let scene = Scene::new(vec![source], Some(engine())).await;
    db.psql("guestbook", "DELETE FROM guests WHERE n > 100");
    let rows = || db.psql("guestbook", "SELECT count(*), max(xmin::text) FROM guests");
    let before = rows();
    let live = scene.world();
    // The database's own part first: what is refused there must not have reached the server.
    let path = scene.set.join("guestbook.dump");
    let good = std::fs::read(&path).unwrap();
    for at in [0, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, bad).unwrap();
        scene.refused(&live, "the dump").await;
        assert_eq!(rows(), before);
    }
    std::fs::write(&path, good).unwrap();
    scene.every_flip_is_found().await;
    assert_eq!(db.psql("guestbook", "SELECT count(*) FROM guests"), "500");
}

#[tokio::test]
async fn what_is_cut_missing_replaced_or_unreadable_is_found() {
    let scene = Scene::new(Vec::new(), None).await;
    let before = scene.world();
    for file in names(&scene.set) {
        let path = scene.set.join(&file);
        let aside = scene.dir.path().join("aside");
        let good = std::fs::read(&path).unwrap();
        for length in [0, 1, good.len() / 2, good.len() - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            scene.refused(&before, &format!("{file} cut to {length}")).await;
        }
        let longer: Vec<u8> = good.iter().copied().chain([0]).collect();
        std::fs::write(&path, longer).unwrap();
        scene.refused(&before, &format!("{file} with a byte more")).await;
        std::fs::write(&path, &good).unwrap();
        std::fs::rename(&path, &aside).unwrap();
        scene.refused(&before, &format!("{file} missing")).await;
        // The very same content, but not in the set.
        std::os::unix::fs::symlink(&aside, &path).unwrap();
        scene.refused(&before, &format!("{file} a link")).await;
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        scene.refused(&before, &format!("{file} a directory")).await;
        std::fs::remove_dir(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        scene.refused(&before, &format!("{file} a pipe")).await;
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
    }
    // What the manifest does not name is nothing to the set.
    std::fs::write(scene.set.join("extra.tar.gz"), "not ours").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", scene.set.join("link.dump")).unwrap();
    put_back(&scene.environment, &scene.set, None, &job()).await.unwrap();
}
