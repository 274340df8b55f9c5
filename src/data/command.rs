//! The user's own way: a command whose standard output is the dump, and one that gets it back on its standard input.
//!
//! Both are run by `sh -c`, on this host with an empty environment but for `PATH`, `HOME` and what is configured, or in a container. Only
//! the exit code says whether they succeeded, and a dump is never empty.
//!
//! Nobody but the command knows what its restore changes and when, so there is no way back from it: it comes last (`restore.rs`), and a failure says
//! that the data may be changed. It must cope with an input that ends early: that is what the end of Refit itself looks like to it. A source that
//! fails is told: the command is ended before it sees the end of its input.

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Check, DataError, Part, PartFormat, PartKind, PartSource, Reach, TableRows,
    kind::{Kind, Stored},
    part::{self, PartWriter, Place},
    postgres::shell_quote,
    restore::{Gate, Loaded, Work},
    tree::read_command,
    unpack::PartReader,
};
use crate::{
    config::{Backup, BackupCommand, BackupSource},
    exec::{ExecError, Program},
    runtime::Job,
    secret::Secret,
};

/// Lines of standard error in a message.
const SAID: usize = 3;

#[derive(Debug)]
pub(super) struct Command;

#[async_trait]
impl Kind for Command {
    fn place(&self, source: &BackupSource) -> String {
        command_of(source).map_or_else(|_| String::new(), place)
    }

    async fn dump(&self, backup: &Backup, place: &Place<'_>, reach: Reach<'_>, job: &Job) -> Result<Part, DataError> {
        let command = command_of(&backup.source)?;
        let name = backup.name.as_str();
        let file = format!("{name}.out{}", part::suffix(backup.compression));
        let mut writer = PartWriter::create(place, file, backup.compression).await?;
        let ran = run(command, &command.dump, None, &mut writer, reach, job).await;
        // A disk that is full is the cause of whatever came of the command.
        if let Some(error) = writer.failure(name) {
            return Err(error);
        }
        ran.map_err(|error| named("dump", error))?;
        let written = writer.finish(name).await?;
        if written.raw_bytes == 0 {
            return Err(DataError::dump("`dump` reported success and printed nothing"));
        }
        let read = read_command(backup.compression);
        let restore = match &command.container {
            Some(container) => {
                format!("docker exec -i {} sh -c {}", shell_quote(container), shell_quote(&command.restore))
            }
            None => format!("sh -c {}", shell_quote(&command.restore)),
        };
        written.doomed.keep();
        Ok(Part {
            name: name.to_owned(),
            kind: PartKind::Command,
            format: PartFormat::Output,
            source: PartSource {
                container: command.container.clone(),
                command: Some(command.dump.clone()),
                ..PartSource::default()
            },
            restore: format!("{read} {} | {restore}", written.file),
            file: written.file,
            sha256: written.sha256,
            bytes: written.bytes,
            raw_bytes: written.raw_bytes,
            compression: Some(backup.compression),
            tables: Vec::new(),
            tree: None,
            roles: None,
            tool: "command".to_owned(),
            server: None,
            duration_ms: 0,
        })
    }

    async fn catalogue(&self, stored: Stored<'_>, job: &Job) -> Result<Vec<Check>, DataError> {
        const WHAT: &str = "size";
        let reader = PartReader::open(stored.set, stored.part)?;
        let read = tokio::select! {
            () = job.cancel.cancelled() => return Err(DataError::Cancelled),
            read = reader.finish() => read,
        };
        let raw = part::size(stored.part.raw_bytes);
        Ok(vec![match read {
            Ok(()) => Check::good(WHAT, format!("{raw}, as recorded; what they mean only its command knows")),
            Err(DataError::Dump { why }) => Check::bad(WHAT, why),
            Err(other) => return Err(other),
        }])
    }

    fn comes_last(&self) -> bool {
        true
    }

    async fn restore(&self, work: &Work<'_>, gate: Gate) -> Result<Loaded, DataError> {
        let command = command_of(&work.backup.source)?;
        let reader = PartReader::open(work.set, work.part)?;
        gate.pass().await?;
        through(command, &command.restore, reader, work.reach, work.job).await.map_err(|e| named("restore", e))?;
        let note = format!("`{}` was put back by its own command, which nothing undoes", work.part.name);
        Ok(Loaded { tables: 0, rows: None, note: Some(note) })
    }

    async fn rehearse(&self, stored: Stored<'_>, reach: Reach<'_>, job: &Job) -> Result<Vec<TableRows>, DataError> {
        let command = stored.backup.map(|backup| command_of(&backup.source)).transpose()?;
        let Some((command, rehearse)) = command.and_then(|c| Some((c, c.rehearse.as_ref()?))) else {
            let why = "a command's backup cannot be tried out unless its `[[backup]]` has a `rehearse` command";
            return Err(DataError::dump(why));
        };
        let reader = PartReader::open(stored.set, stored.part)?;
        through(command, rehearse, reader, reach, job).await.map_err(|e| named("rehearse", e))?;
        Ok(Vec::new())
    }
}

fn command_of(source: &BackupSource) -> Result<&BackupCommand, DataError> {
    match source {
        BackupSource::Command(command) => Ok(command),
        _ => Err(DataError::dump("not a command")),
    }
}

fn place(command: &BackupCommand) -> String {
    match &command.container {
        Some(container) => format!("what `{}` in container `{container}` keeps", command.restore),
        None => format!("what `{}` keeps", command.restore),
    }
}

fn named(key: &str, error: DataError) -> DataError {
    match error {
        DataError::Dump { why } => DataError::dump(format!("`{key}` {why}")),
        other => other,
    }
}

/// Gives the part's raw bytes to a command that has to take them to their end, and to end well.
async fn through(
    command: &BackupCommand,
    script: &str,
    mut reader: PartReader,
    reach: Reach<'_>,
    job: &Job,
) -> Result<(), DataError> {
    run(command, script, Some(&mut reader), &mut tokio::io::sink(), reach, job).await?;
    // What it did not read may be damaged, and what it did read was then not what was written.
    reader.finish().await
}

async fn run(
    command: &BackupCommand,
    script: &str,
    source: Option<&mut (dyn AsyncRead + Send + Unpin)>,
    sink: &mut (dyn AsyncWrite + Send + Unpin),
    reach: Reach<'_>,
    job: &Job,
) -> Result<(), DataError> {
    let (code, said) = match &command.container {
        Some(container) => {
            let containers = reach.containers(container)?;
            let words = ["/bin/sh", "-c", script].map(str::to_owned);
            let plain: Vec<(&str, Secret)> = command.env.iter().map(|(k, v)| (k.as_str(), Secret::new(v))).collect();
            let secrets = command.secrets.iter().map(|(name, value)| (name.as_str(), value));
            let env: Vec<(&str, &Secret)> = plain.iter().map(|(k, v)| (*k, v)).chain(secrets).collect();
            let outcome = match source {
                Some(source) => containers.exec_through(container, &words, &env, source, sink, job).await,
                None => containers.exec_into(container, &words, &env, sink, job).await,
            }?;
            (outcome.code, outcome.output)
        }
        None => {
            let secrets = command.secrets.iter().map(|(name, value)| (name, value.expose()));
            let program = Program::shell(script).clean_env().envs(&command.env).envs(secrets);
            // The time is watched by whoever asked.
            let limit = std::time::Duration::MAX;
            let ran = program.pipe(source, sink, limit, &job.cancel, |line| job.log.line(line)).await;
            let finished = ran.map_err(|error| match error {
                ExecError::Cancelled { .. } => DataError::Cancelled,
                other => DataError::dump(format!("failed: {other}")),
            })?;
            (i64::from(finished.code), finished.stderr)
        }
    };
    if code == 0 {
        return Ok(());
    }
    let said = said.iter().rev().take(SAID).rev().cloned().collect::<Vec<_>>().join("\n");
    let said = if said.is_empty() { "it said nothing".to_owned() } else { said };
    Err(DataError::dump(format!("ended with exit code {code}: {said}")))
}
