//! Volumes of the Docker Engine: the same archive as of a directory (`archive.rs`), by one of two ways to the files.
//!
//! **Directly**, where this process is root and the files of the volume lie on this host. **Through a helper** otherwise: a container that has the
//! volume mounted, out of which the engine itself streams the files. To read, it is never started, so any image will do. To write, it has
//! to exchange the old content for the new, and its image needs `/bin/sh` with `mv`, `rm`, `chown`, `chmod`, `stat` and `sync`.
//!
//! A volume cannot be renamed and containers hold on to its directory, so its content is exchanged (`exchange.rs`): the new content grows in
//! `.refit-restore` within it, and when every part is ready, what is old moves in there and what is new moves out. What is promised: nothing old is
//! removed before all that is new is in place; until the exchange is begun, the old content is there, whole, and a kill changes
//! nothing; a kill in the middle leaves a mark by which the next restore goes on, and no backup is taken of what is half exchanged.
//!
//! Through a helper times are kept to the second and none before 1970 or after 2262, which is the engine's doing, and a restore with `exclude` is refused: what is excluded cannot be told there.

use std::path::PathBuf;

use async_trait::async_trait;
use rustix::process::geteuid;
use tokio::io::sink;
use tokio_util::sync::CancellationToken;

use super::{
    Check, DataError, Part, PartKind, PartSource, Reach, TableRows,
    archive::{
        Exclude, below,
        exchange::{discard, is_half_done},
        pack,
        pipe::{AsyncDrain, AsyncFeed, Drain, Feed, pipe},
        transcode,
    },
    kind::{Kind, Stored},
    part::Place,
    restore::{Gate, Loaded, Work},
    tree,
};
use crate::{
    config::{Backup, BackupSource, PathRules},
    model::EnvironmentKey,
    runtime::{
        ContainerExec, Job, Scratch, ScratchContainer, ScratchImage, ScratchMount, ScratchNetwork, ScratchRun,
        ScratchSpec, VolumeSight,
    },
};

const HINT: &str = "docker run --rm --interactive --volume=EMPTY_VOLUME:/to IMAGE_WITH_TAR \
                    tar --extract --preserve-permissions --numeric-owner --directory=/to";

/// Where a helper has the volume.
const TARGET: &str = "/refit-volume";

/// Where the new content grows.
const NEW: &str = "/refit-volume/.refit-restore/new";

/// What is not begun yet goes; what is begun stays for the next restore.
const REMOVE: &str = "cd /refit-volume && s=.refit-restore && [ ! -e $s/out ] && [ ! -e $s/in ] && rm -rf $s";

/// A helper moves files about.
const MEMORY: u64 = 256 << 20;

/// Ends or removes what an earlier restore left, and makes room for the new content. The same marks as in `exchange.rs`.
const BEGIN: &str = "set -e; cd /refit-volume; s=.refit-restore
if [ -e $s/out ] || [ -e $s/in ]; then echo 'an interrupted restore goes on first' >&2; go_on; fi
rm -rf $s; mkdir -m 700 $s; mkdir -m 700 $s/new $s/old";

/// The exchange, from wherever it was.
const EXCHANGE: &str = "set -e; cd /refit-volume; s=.refit-restore
: > $s/out; sync; go_on; rm -rf $s";

const GO_ON: &str = "go_on() {
  if [ ! -e $s/in ]; then
    for f in * .[!.]* ..?*; do
      if [ \"$f\" != $s ] && { [ -e \"$f\" ] || [ -L \"$f\" ]; }; then mv -- \"$f\" $s/old/; fi
    done
    mv $s/out $s/in; sync
  fi
  cd $s/new
  for f in * .[!.]* ..?*; do
    if [ -e \"$f\" ] || [ -L \"$f\" ]; then mv -- \"$f\" ../../; fi
  done
  cd ../..
  chown \"$(stat -c %u:%g $s/new)\" .; chmod \"$(stat -c %a $s/new)\" .; sync
}
";

#[derive(Debug)]
pub(super) struct Volume;

#[async_trait]
impl Kind for Volume {
    fn place(&self, source: &BackupSource) -> String {
        source_of(source).map_or_else(|_| String::new(), |(volume, _)| format!("volume `{volume}`"))
    }

    async fn dump(&self, backup: &Backup, place: &Place<'_>, reach: Reach<'_>, job: &Job) -> Result<Part, DataError> {
        let (volume, exclude) = source_of(&backup.source)?;
        let scratch = scratch_of(reach, volume)?;
        let seen = scratch.volume(volume).await?;
        let seen = seen.ok_or_else(|| DataError::dump(format!("there is no volume `{volume}`")))?;
        let excluded = tree::exclude(exclude);
        let made = match direct(&seen) {
            Some(root) if is_half_done(&root) => return Err(half_done(volume)),
            Some(root) => tree::store(backup, place, job, move |feed| pack(&root, &excluded, feed)).await?,
            None => {
                let helper = reader(scratch, place.key, volume, &seen).await?;
                let (read, stored) = {
                    let Streamed { reading, drain } = stream(helper.as_ref(), TARGET, job);
                    let stored = tree::store(backup, place, job, move |feed| transcode(drain, &excluded, feed));
                    tokio::join!(reading, stored)
                };
                gone(helper, job).await;
                both(read, stored)?
            }
        };
        let source = PartSource { volume: Some(volume.to_owned()), ..PartSource::default() };
        Ok(tree::part(backup, PartKind::Volume, source, made, HINT))
    }

    async fn catalogue(&self, stored: Stored<'_>, job: &Job) -> Result<Vec<Check>, DataError> {
        tree::catalogue(stored, job).await
    }

    async fn restore(&self, work: &Work<'_>, gate: Gate) -> Result<Loaded, DataError> {
        let (volume, exclude) = source_of(&work.backup.source)?;
        let scratch = scratch_of(work.reach, volume)?;
        let seen = match scratch.volume(volume).await? {
            Some(seen) => seen,
            None => make(scratch, work, volume).await?,
        };
        let Some(root) = direct(&seen) else {
            return through_helper(scratch, work, &seen, gate).await;
        };
        let target = (root, tree::exclude(exclude), true);
        let ready = tree::prepare(work.set, work.part, work.job, target).await?;
        pass(work, gate).await?;
        tree::exchange(ready).await
    }

    async fn rehearse(&self, stored: Stored<'_>, _: Reach<'_>, job: &Job) -> Result<Vec<TableRows>, DataError> {
        tree::rehearse(stored, job).await.map(|()| Vec::new())
    }

    async fn exists(&self, backup: &Backup, _: &EnvironmentKey, reach: Reach<'_>, _: &Job) -> Result<bool, DataError> {
        let (volume, _) = source_of(&backup.source)?;
        Ok(scratch_of(reach, volume)?.volume(volume).await?.is_some())
    }

    async fn sweep(
        &self,
        backup: &Backup,
        _: &EnvironmentKey,
        reach: Reach<'_>,
        _: &Job,
    ) -> Result<Option<String>, DataError> {
        let (volume, _) = source_of(&backup.source)?;
        let seen = scratch_of(reach, volume)?.volume(volume).await?;
        // Through a helper it is the next restore that looks.
        let Some(root) = seen.as_ref().and_then(direct) else { return Ok(None) };
        let swept = tokio::task::spawn_blocking(move || discard(&root)).await;
        let swept = swept.map_err(|error| DataError::dump(error.to_string()))?;
        let swept = swept.map_err(|error| DataError::dump(format!("volume `{volume}`: {error}")))?;
        Ok((!swept.is_empty()).then(|| format!("removed what an interrupted restore had left in volume `{volume}`")))
    }
}

fn source_of(source: &BackupSource) -> Result<(&str, &PathRules), DataError> {
    match source {
        BackupSource::Volume { volume, exclude } => Ok((volume, exclude)),
        _ => Err(DataError::dump("not a volume")),
    }
}

fn scratch_of<'a>(reach: Reach<'a>, volume: &str) -> Result<&'a dyn Scratch, DataError> {
    let away = || DataError::dump(format!("volume `{volume}` is out of reach: there is no Docker Engine"));
    reach.scratch.ok_or_else(away)
}

fn half_done(volume: &str) -> DataError {
    DataError::dump(format!("volume `{volume}` holds a restore that was interrupted: restore again first"))
}

/// Only root sees everything in a volume, whoever owns it.
fn direct(seen: &VolumeSight) -> Option<PathBuf> {
    seen.place.clone().filter(|place| geteuid().is_root() && place.is_dir())
}

async fn pass(work: &Work<'_>, gate: Gate) -> Result<(), DataError> {
    tokio::select! {
        biased;
        passed = gate.pass() => passed,
        () = work.job.cancel.cancelled() => Err(DataError::Cancelled),
    }
}

async fn open(
    scratch: &dyn Scratch,
    key: &EnvironmentKey,
    volume: &str,
    image: ScratchImage<'_>,
    write: bool,
) -> Result<Box<dyn ScratchContainer>, DataError> {
    let mount = ScratchMount { source: volume.to_owned(), target: TARGET.to_owned(), read_only: !write };
    let spec = ScratchSpec {
        key,
        purpose: "volume",
        image,
        run: if write { ScratchRun::Commands } else { ScratchRun::Nothing },
        env: &[],
        user: Some("0"),
        mounts: &[mount],
        network: ScratchNetwork::None,
        memory: MEMORY,
    };
    Ok(scratch.open(&spec).await?)
}

/// A container that is never started.
async fn reader(
    scratch: &dyn Scratch,
    key: &EnvironmentKey,
    volume: &str,
    seen: &VolumeSight,
) -> Result<Box<dyn ScratchContainer>, DataError> {
    if let Some(user) = seen.users.first() {
        return open(scratch, key, volume, ScratchImage::Of(user), false).await;
    }
    let image = scratch.any_image().await?.ok_or_else(|| {
        DataError::dump(format!(
            "volume `{volume}` cannot be seen: there is no image on this machine to make a helper of"
        ))
    })?;
    open(scratch, key, volume, ScratchImage::Named(&image), false).await
}

/// The engine makes a volume for the first container that has it.
async fn make(scratch: &dyn Scratch, work: &Work<'_>, volume: &str) -> Result<VolumeSight, DataError> {
    let helper = reader(scratch, work.key, volume, &VolumeSight { place: None, users: Vec::new() }).await?;
    gone(helper, work.job).await;
    work.job.log.line(format!("made volume `{volume}`"));
    let seen = scratch.volume(volume).await?;
    seen.ok_or_else(|| DataError::dump(format!("volume `{volume}` could not be made")))
}

/// A container that runs commands, of the first image that can.
async fn writer(
    scratch: &dyn Scratch,
    work: &Work<'_>,
    volume: &str,
    seen: &VolumeSight,
) -> Result<Box<dyn ScratchContainer>, DataError> {
    let any = scratch.any_image().await?;
    let images = seen.users.iter().map(|user| ScratchImage::Of(user)).chain(any.as_deref().map(ScratchImage::Named));
    for image in images {
        if let Ok(helper) = open(scratch, work.key, volume, image, true).await {
            return Ok(helper);
        }
    }
    Err(DataError::dump(format!(
        "no image at hand has the `/bin/sh` that volume `{volume}` is exchanged with: run this as root on the engine's own host"
    )))
}

async fn gone(helper: Box<dyn ScratchContainer>, job: &Job) {
    let name = helper.name().to_owned();
    if let Err(error) = helper.remove().await {
        // It is swept by its label later.
        job.log.line(format!("container {name} is left: {error}"));
    }
}

/// What the engine streams, for a thread that may block.
struct Streamed<F> {
    reading: F,
    drain: Drain,
}

fn stream<'a>(
    helper: &'a dyn ScratchContainer,
    path: &'a str,
    job: &'a Job,
) -> Streamed<impl Future<Output = Result<(), DataError>> + Send + 'a> {
    let (into, chunks) = pipe();
    let reading = async move {
        let mut into = AsyncFeed::new(into);
        Ok(helper.read_archive(path, &mut into, job).await?)
    };
    Streamed { reading, drain: Drain::new(chunks) }
}

/// The cause, where both ends of a stream failed: the engine's end, unless it only tells that nobody listens any more.
fn both<T>(read: Result<(), DataError>, taken: Result<T, DataError>) -> Result<T, DataError> {
    match (read, taken) {
        (Ok(()), taken) => taken,
        (Err(_), Err(error @ (DataError::NoSpace { .. } | DataError::Io { .. } | DataError::Cancelled))) => Err(error),
        (Err(error), _) => Err(error),
    }
}

/// Unpacks inside the volume, reads back what is there then, and exchanges.
async fn through_helper(
    scratch: &dyn Scratch,
    work: &Work<'_>,
    seen: &VolumeSight,
    gate: Gate,
) -> Result<Loaded, DataError> {
    let (volume, exclude) = source_of(&work.backup.source)?;
    if exclude.set.is_some() {
        let why = "what `exclude` names would be lost: run this as root on the engine's own host";
        return Err(DataError::dump(format!("volume `{volume}` can only be written through a container, and {why}")));
    }
    let containers = work.reach.containers(volume)?;
    // Before a byte of it reaches the engine.
    let recorded = tree::check(work.set, work.part, work.job).await?;
    let helper = writer(scratch, work, volume, seen).await?;
    let written = async {
        command(containers, helper.name(), BEGIN, work.job).await?;
        send(helper.as_ref(), work).await?;
        let Streamed { reading, drain } = stream(helper.as_ref(), NEW, work.job);
        let found = tokio::task::spawn_blocking(|| transcode(drain, &Exclude::default(), std::io::sink()));
        let (read, found) = tokio::join!(reading, found);
        let found = found.map_err(|error| DataError::dump(error.to_string()))?;
        let found = both(read, found.map_err(|error| DataError::dump(error.to_string())))?;
        tree::same(&found.listing, &recorded).map_err(|error| DataError::dump(error.to_string()))?;
        pass(work, gate).await
    };
    if let Err(error) = written.await {
        // On a job of its own: this one may be cancelled.
        let tidying = Job { log: work.job.log.clone(), cancel: CancellationToken::new() };
        let _ = command(containers, helper.name(), REMOVE, &tidying).await;
        gone(helper, work.job).await;
        return Err(error);
    }
    let exchanged = command(containers, helper.name(), EXCHANGE, work.job).await;
    gone(helper, work.job).await;
    exchanged?;
    Ok(Loaded { tables: recorded.entries, rows: None, note: None })
}

/// Unpacks the part into the place for the new content. The engine lets links lead only to where it unpacks: that is the helper's root.
async fn send(helper: &dyn ScratchContainer, work: &Work<'_>) -> Result<(), DataError> {
    let (into, chunks) = pipe();
    let renaming = tree::load(work.set, work.part, work.job, move |drain| {
        let mut feed = Feed::new(into);
        below(drain, NEW.trim_start_matches('/'), &mut feed)?;
        feed.end()
    });
    let mut source = AsyncDrain::new(chunks);
    let writing = async move { helper.write_archive("/", &mut source, work.job).await };
    let (written, renamed) = tokio::join!(writing, renaming);
    // Where the engine took no more, it says why; the other end only found nobody.
    written?;
    renamed
}

async fn command(containers: &dyn ContainerExec, helper: &str, script: &str, job: &Job) -> Result<(), DataError> {
    let words = ["/bin/sh".to_owned(), "-c".to_owned(), format!("{GO_ON}{script}")];
    let outcome = containers.exec_into(helper, &words, &[], &mut sink(), job).await?;
    if outcome.code == 0 {
        return Ok(());
    }
    let said = outcome.output.last().cloned().unwrap_or_default();
    Err(DataError::dump(format!("the helper's commands ended with exit code {}: {said}", outcome.code)))
}
