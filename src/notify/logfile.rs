//! What a stage wrote into a deployment's log, for a chat.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Result, Seek, SeekFrom},
    path::Path,
};

use crate::model::Stage;

/// Bytes of the log that are looked at, from its end: more than a person reads, and far below the 50 MB that a bot may send.
const LARGEST: u64 = 1024 * 1024;

/// The lines of a stage, oldest first, with a remark where older ones are left out.
pub(super) fn stage_log(path: &Path, stage: Stage) -> Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let skipped = length.saturating_sub(LARGEST);
    file.seek(SeekFrom::Start(skipped))?;
    // As `log` writes them: time, name, bar.
    let label = format!(" {stage:<7} | ");
    let mut text = String::new();
    if skipped > 0 {
        text.push_str(&format!("(the first {skipped} bytes of the log are left out)\n"));
    }
    for line in BufReader::new(file.take(LARGEST)).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        // The time has no blanks.
        if line.split_once(' ').is_some_and(|(time, _)| line[time.len()..].starts_with(&label)) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{log::DeploymentLog, redact::Redactor};

    #[test]
    fn a_stage_is_found_among_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let log = DeploymentLog::open(&path, Redactor::default()).unwrap();
        log.stage(Stage::Test).line("one\ntwo | build   | x");
        log.stage(Stage::Build).line("a build | test    | line");
        log.stage(Stage::Test).line("three");
        let text = stage_log(&path, Stage::Test).unwrap();
        let lines: Vec<&str> = text.lines().filter_map(|line| line.split_once("| ")).map(|(_, said)| said).collect();
        assert_eq!(lines, ["one", "two | build   | x", "three"]);
    }

    #[test]
    fn a_huge_log_is_cut_at_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let log = DeploymentLog::open(&path, Redactor::default()).unwrap();
        let test = log.stage(Stage::Test);
        (0..1200).for_each(|n| test.line(format!("{n} {}", "é".repeat(500))));
        let text = stage_log(&path, Stage::Test).unwrap();
        assert!(text.len() < 1024 * 1024 + 100 && text.starts_with("(the first "), "{}", text.len());
        assert!(text.contains("| 1199 é") && !text.contains("| 0 é"));
    }
}
