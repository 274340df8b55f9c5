//! `refit logs`: a deployment's log file, as it stands or as it grows.
//!
//! Following polls the file and the store: the file for new lines, the store for the end, and once more the file, because the last
//! lines may be written between the two.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    time::Duration,
};

use super::{
    args::LogsArgs,
    context::{Context, check_target, find_deployment, log_file, newest_deployment, open_registry},
    error::{CliError, Result, exit},
};
use crate::{config::Config, model::DeploymentView, registry::Registry};

const POLL: Duration = Duration::from_millis(200);

/// Read at once, in bytes.
const PIECE: usize = 64 * 1024;

pub async fn run(context: &Context, args: &LogsArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    check_target(&config, &args.target)?;
    let registry = open_registry(&config).await?;
    let view = match args.id {
        Some(id) => find_deployment(&registry, id).await?,
        None => newest_deployment(&registry, &args.target).await?,
    };
    if args.follow {
        follow(context, &config, &registry, view, args).await
    } else {
        print(context, &config, &view, args)
    }
}

fn print(context: &Context, config: &Config, view: &DeploymentView, args: &LogsArgs) -> Result<u8> {
    let Some(path) = log_file(config, view) else {
        let hint = if view.status.is_end() { "`refit report` tells its story" } else { "`refit logs -f` waits for it" };
        return Err(CliError::usage(format!("deployment {} has no log: it has not begun", view.id), hint));
    };
    if !path.exists() {
        let message =
            format!("the log {} is gone: logs are kept for {} days", path.display(), config.server.log_keep_days);
        return Err(CliError::usage(message, "a larger `log_keep_days` in [server]"));
    }
    let mut tail = Tail::new(args.stage.as_deref());
    loop {
        let text = tail.read(&path)?;
        if text.is_empty() {
            break;
        }
        context.print(&text)?;
    }
    context.print(&tail.rest())?;
    Ok(exit::OK)
}

async fn follow(
    context: &Context,
    config: &Config,
    registry: &Registry,
    mut view: DeploymentView,
    args: &LogsArgs,
) -> Result<u8> {
    let mut tail = Tail::new(args.stage.as_deref());
    if view.log.is_none() && !view.status.is_end() {
        context.say(&format!("deployment {} waits in the queue", view.id));
    }
    loop {
        let ended = view.status.is_end();
        if let Some(path) = log_file(config, &view) {
            loop {
                let text = tail.read(&path)?;
                if text.is_empty() {
                    break;
                }
                context.print(&text)?;
            }
        }
        if ended {
            context.print(&tail.rest())?;
            let story = super::story::Story::load(registry, view).await?;
            context.say(&story.headline());
            return Ok(exit::OK);
        }
        tokio::time::sleep(POLL).await;
        view = find_deployment(registry, view.id.0).await?;
    }
}

/// Reads a growing file in whole lines, and keeps the lines of one stage or all.
struct Tail<'a> {
    at: u64,
    /// The beginning of a line whose end is not written yet.
    part: Vec<u8>,
    stage: Option<&'a str>,
}

impl<'a> Tail<'a> {
    fn new(stage: Option<&'a str>) -> Self {
        Self { at: 0, part: Vec::new(), stage }
    }

    /// The next lines, empty where nothing new is there (or none of it is wanted and the end was reached).
    fn read(&mut self, path: &Path) -> Result<String> {
        loop {
            let new = read_from(path, self.at).map_err(|e| CliError::io(format!("reading {}", path.display()), e))?;
            if new.is_empty() {
                return Ok(String::new());
            }
            self.at += new.len() as u64;
            self.part.extend(new);
            let whole = self.part.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
            let lines: Vec<u8> = self.part.drain(..whole).collect();
            let wanted = self.wanted(&String::from_utf8_lossy(&lines));
            if !wanted.is_empty() {
                return Ok(wanted);
            }
        }
    }

    /// A last line without its end.
    fn rest(&mut self) -> String {
        let part = std::mem::take(&mut self.part);
        self.wanted(&String::from_utf8_lossy(&part))
    }

    fn wanted(&self, lines: &str) -> String {
        // A line is `TIME STAGE | text`; see `crate::log`.
        let is_wanted = |line: &&str| {
            self.stage.is_none_or(|stage| {
                line.split_once(" | ").is_some_and(|(head, _)| head.split_whitespace().nth(1) == Some(stage))
            })
        };
        lines.split_inclusive('\n').filter(is_wanted).collect()
    }
}

fn read_from(path: &Path, at: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        // Named in the store a moment before it is made.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    file.seek(SeekFrom::Start(at))?;
    let mut piece = Vec::with_capacity(PIECE);
    file.take(PIECE as u64).read_to_end(&mut piece)?;
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_growing_file_is_read_in_whole_lines() -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        let path = file.path().to_owned();
        let read = |tail: &mut Tail<'_>| tail.read(&path).map_err(|_| io::Error::other("read"));
        let mut all = Tail::new(None);
        let mut build = Tail::new(Some("build"));
        write!(file, "T1 pull    | one\nT2 build   | tw")?;
        assert_eq!(read(&mut all)?, "T1 pull    | one\n");
        assert_eq!((read(&mut all)?, read(&mut build)?), (String::new(), String::new()));
        write!(file, "o | x\nT3 test    | build | three")?;
        assert_eq!(read(&mut all)?, "T2 build   | two | x\n");
        assert_eq!(read(&mut build)?, "T2 build   | two | x\n");
        assert_eq!((read(&mut all)?, read(&mut build)?), (String::new(), String::new()));
        assert_eq!((all.rest(), build.rest()), ("T3 test    | build | three".to_owned(), String::new()));
        Ok(())
    }
}
