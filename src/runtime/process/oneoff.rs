//! Short-lived work: builds, test suites, migrations.
//!
//! Each has a scratch place of a computed name, `<deployment>-<role>`: a directory, and beside it a file with the process group that
//! works there. The group's leader writes that file itself before it runs a line of the user's command, so after a crash of
//! the daemon [`sweep`] finds and ends what still runs, and deletes what it worked in.

use std::{
    collections::{BTreeSet, VecDeque},
    io::Read,
    path::{Path, PathBuf},
};

use super::{
    place::{Place, file_name, io_failed, make_dir, remove_all},
    procfs::{Group, boot_id},
    release::export,
};
use crate::{
    exec::{KILL_AFTER, Program, Stream},
    log::TAIL_LINES,
    model::{DeploymentId, EnvironmentKey},
    runtime::{Job, OneOff, OneOffResult, Result, RuntimeError, SeenHelper},
};

/// Largest file that is brought back, in bytes.
const MAX_COLLECTED: u64 = 32 * 1024 * 1024;

/// Writes down the boot's id and the line of `/proc` that identifies this process, then becomes the user's shell. `$1` is the
/// file, `$2` the command.
const RECORD: &str = r#"
{ read -r boot </proc/sys/kernel/random/boot_id && read -r stat </proc/$$/stat &&
  printf '%s\n%s\n' "$boot" "$stat" >"$1"; } || exit 125
exec /bin/sh -c "$2"
"#;

/// A place to work in and the record of who does.
#[derive(Debug)]
pub(super) struct Scratch {
    pub dir: PathBuf,
    record: PathBuf,
}

impl Scratch {
    /// Takes the place, ending and deleting what an earlier attempt left there. The directory itself is not made.
    pub async fn claim(place: &Place, key: &EnvironmentKey, deployment: DeploymentId, role: &str) -> Result<Self> {
        let name = format!("{deployment}-{}", file_name("role", role)?);
        let parent = place.scratch(key);
        make_dir(&parent)?;
        let scratch = Self { dir: parent.join(&name), record: parent.join(format!("{name}.pid")) };
        scratch.release().await?;
        Ok(scratch)
    }

    /// `sh -c run` that records itself, with a clean environment.
    pub fn program(&self, run: &str) -> Program {
        Program::shell(RECORD).arg("refit-one-off").arg(&self.record).arg(run).clean_env()
    }

    /// Ends what still runs and deletes the directory and the record.
    pub async fn release(&self) -> Result<()> {
        end_recorded(&self.record).await?;
        remove_all(&self.dir).await?;
        remove_all(&self.record).await
    }
}

async fn end_recorded(record: &Path) -> Result<()> {
    let text = std::fs::read_to_string(record).unwrap_or_default();
    let group = text.split_once('\n').filter(|(boot, _)| *boot == boot_id()).and_then(|(_, stat)| Group::parse(stat));
    if let Some(group) = group {
        let ended = group.end(KILL_AFTER).await;
        ended.map_err(|error| RuntimeError::failed("ending what an earlier attempt left running", error))?;
    }
    Ok(())
}

pub(super) async fn run(place: &Place, one_off: &OneOff<'_>, job: &Job) -> Result<OneOffResult> {
    let key = &one_off.environment.key;
    let scratch = Scratch::claim(place, key, one_off.deployment, one_off.role).await?;
    let result = work(place, one_off, job, &scratch).await;
    scratch.release().await?;
    result
}

async fn work(place: &Place, one_off: &OneOff<'_>, job: &Job, scratch: &Scratch) -> Result<OneOffResult> {
    let dir = match one_off.tree {
        Some((mirror, commit)) => {
            export(mirror, commit, &scratch.dir).await?;
            scratch.dir.clone()
        }
        None => place.existing_release(one_off.artefact)?,
    };
    let secrets = one_off.secrets.iter().map(|(name, secret)| (name, secret.expose()));
    let program = scratch.program(one_off.run).dir(&dir).envs(one_off.env).envs(secrets);
    let mut stdout_tail = VecDeque::new();
    let finished = program.stream_both(super::NO_LIMIT, &job.cancel, |stream, line| {
        job.log.line(line);
        if stream == Stream::Out {
            if stdout_tail.len() == TAIL_LINES {
                stdout_tail.pop_front();
            }
            stdout_tail.push_back(line.to_owned());
        }
    });
    let finished = finished.await.map_err(super::exec_failed(one_off.role))?;
    let collected = match one_off.collect {
        Some(path) => collect(&dir, path)?,
        None => None,
    };
    Ok(OneOffResult { code: finished.code.into(), stdout_tail: stdout_tail.into(), collected })
}

/// Reads a regular file below `dir`, following no link out of it. `None` where there is none.
fn collect(dir: &Path, path: &str) -> Result<Option<Vec<u8>>> {
    let asked = dir.join(path);
    let Ok(real) = asked.canonicalize() else { return Ok(None) };
    let root = dir.canonicalize().map_err(io_failed("reading", dir))?;
    let refused = |why: &str| Err(RuntimeError::failed(format!("collecting `{}`", path.escape_default()), why));
    if !real.starts_with(&root) {
        return refused("it is outside the working directory");
    }
    let found = real.metadata().map_err(io_failed("reading", &asked))?;
    if !found.is_file() {
        return refused("it is not a regular file");
    }
    if found.len() > MAX_COLLECTED {
        return refused("it is larger than 32 MiB");
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(&real).map_err(io_failed("reading", &asked))?;
    file.take(MAX_COLLECTED).read_to_end(&mut bytes).map_err(io_failed("reading", &asked))?;
    Ok(Some(bytes))
}

/// Every scratch place of an environment.
pub(super) fn seen(place: &Place, key: &EnvironmentKey) -> Vec<SeenHelper> {
    let deployment = |name: &str| name.split_once('-')?.0.parse().ok().map(DeploymentId);
    scratch_names(place, key)
        .into_iter()
        .filter_map(|name| Some(SeenHelper { deployment: deployment(&name)?, name }))
        .collect()
}

/// Each place once, by its directory, its record or both.
fn scratch_names(place: &Place, key: &EnvironmentKey) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(place.scratch(key)) else { return BTreeSet::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .map(|name| name.strip_suffix(".pid").unwrap_or(&name).to_owned())
        .collect()
}

/// Ends and deletes every scratch place of a deployment. Returns their names.
pub(super) async fn sweep(place: &Place, key: &EnvironmentKey, deployment: DeploymentId) -> Result<Vec<String>> {
    let prefix = format!("{deployment}-");
    let names = scratch_names(place, key).into_iter().filter(|name| name.starts_with(&prefix));
    let names: Vec<String> = names.collect();
    for name in &names {
        let role = &name[prefix.len()..];
        Scratch::claim(place, key, deployment, role).await?;
    }
    Ok(names)
}
