//! Whether data could come back: what is backed up, how old the newest backup is, and what the last look at it found.

use jiff::{SignedDuration, Timestamp};

use super::Finding;
use crate::{
    cli::style::Clock,
    config::{Config, Environment},
    control::{BackupStatus, EnvironmentStatus},
    data::Depth,
    files::human_bytes,
};

/// Variables by which apps are told of a database.
const DATABASE_WORDS: [&str; 5] = ["DATABASE", "POSTGRES", "MYSQL", "MARIADB", "SQLITE"];

pub fn check(config: &Config, all: &[EnvironmentStatus], clock: &Clock) -> Vec<Finding> {
    let of = |environment: &std::sync::Arc<Environment>| {
        let status = all.iter().find(|status| status.key == environment.key);
        let live = status.is_some_and(|status| status.live.is_some());
        finding(environment, live, status.and_then(|status| status.backups.as_ref()), clock)
    };
    config.environments().filter_map(of).collect()
}

fn finding(environment: &Environment, live: bool, status: Option<&BackupStatus>, clock: &Clock) -> Option<Finding> {
    let check = format!("backups {}", environment.key);
    if environment.backups.is_empty() {
        let database = why_a_database(environment)?;
        let detail = format!("nothing is backed up, though {database}");
        return Some(Finding::warn(check, detail, "add a [[backup]] to pipeline.toml: docs/data.md shows each kind"));
    }
    let status = status?;
    let name = environment.key.environment.as_str();
    let Some(newest) = &status.newest else {
        let fix = format!("`refit backup create --env {name}`, or deploy");
        return Some(match live {
            true => Finding::warn(check, "there is none, and the app is live", fix),
            false => Finding::ok(check, "none yet: the first deployment takes one"),
        });
    };
    let age = clock.ago(newest.at);
    let known = format!("the newest is {} ({age}, {})", newest.set, human_bytes(newest.bytes));
    if let Some(look) = status.verified.as_ref().filter(|look| !look.look.ok) {
        let why = look.look.problems.first().map(|why| format!(": {why}")).unwrap_or_default();
        let fix = format!("`refit backup create --env {name}`, then `refit backup verify --restore --env {name}`");
        return Some(Finding::fail(check, format!("{} is NOT good{why}", look.set), fix));
    }
    if !newest.missing.is_empty() {
        let fix = format!("see why: `refit backup show {} --env {name}`", newest.set);
        return Some(Finding::warn(check, format!("{known} lacks {}", newest.missing.join(", ")), fix));
    }
    let Some(every) = environment.rehearse_backups else { return Some(Finding::ok(check, known)) };
    let tried = status.verified.as_ref().filter(|look| look.look.depth == Depth::Restore);
    let late = SignedDuration::try_from(every.saturating_mul(2)).unwrap_or(SignedDuration::MAX);
    match tried {
        Some(look) if Timestamp::duration_since(clock.now, look.look.at) <= late => {
            Some(Finding::ok(check, format!("{known}; one was restored {}", clock.ago(look.look.at))))
        }
        Some(look) => Some(Finding::warn(
            check,
            format!("{known}; one was restored {}, which is to be done every {every:?}", clock.ago(look.look.at)),
            "the daemon does it while no deployment runs: `refit serve`; or by hand: `refit backup verify --restore`",
        )),
        None => Some(Finding::warn(
            check,
            format!("{known}; none was ever restored to try it, which is to be done every {every:?}"),
            "the daemon does it: `refit serve`; or by hand: `refit backup verify --restore`",
        )),
    }
}

/// What speaks for a database that nobody backs up.
fn why_a_database(environment: &Environment) -> Option<String> {
    if environment.migrate.is_some() {
        return Some("[migrate] changes a database".to_owned());
    }
    let names = environment.start.secrets.keys().chain(environment.start.env.keys());
    let told = names.into_iter().find(|name| DATABASE_WORDS.iter().any(|word| name.to_uppercase().contains(word)));
    told.map(|name| format!("the app is told of a database by {name}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        cli::sample,
        config,
        control::{NewestBackup, VerifiedBackup},
        data::LastLook,
    };

    fn environment(tables: &str) -> Arc<Environment> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pipeline.toml");
        let text =
            format!("[app]\nname = 'shop'\nrepository = 'r'\n[environments.production]\nbranch = 'main'\n{tables}");
        std::fs::write(&file, text).unwrap();
        let config = config::load(&file, &|_| None).unwrap_or_else(|e| panic!("{e}"));
        config.environments().next().unwrap().clone()
    }

    fn told(tables: &str, live: bool, status: Option<BackupStatus>) -> String {
        let found = finding(&environment(tables), live, status.as_ref(), &sample::clock());
        found.map_or_else(
            || "nothing".to_owned(),
            |f| format!("{:?}: {}; {}", f.status, f.detail, f.fix.unwrap_or_default()),
        )
    }

    fn status(missing: &[&str], look: Option<(i64, Depth, bool)>) -> BackupStatus {
        let missing = missing.iter().map(|part| (*part).to_owned()).collect();
        let newest = NewestBackup { set: "2026-11-21_10-15-30".to_owned(), at: sample::at(600), bytes: 1234, missing };
        let look = look.map(|(ago, depth, ok)| VerifiedBackup {
            set: "2026-11-20_10-15-30".to_owned(),
            look: LastLook {
                at: sample::at(ago),
                depth,
                ok,
                bad: Vec::new(),
                problems: vec!["`db`: SHA-256: another".to_owned()],
            },
        });
        BackupStatus { newest: Some(newest), verified: look }
    }

    #[test]
    fn every_state_has_its_words() {
        let backup = "[[backup]]\nkind = 'sqlite'\npath = '/srv/app.db'\n";
        let rehearsed = format!("rehearse_backups = '1d'\n{backup}");
        let none = BackupStatus { newest: None, verified: None };
        let all = [
            told("", true, None),
            told("[migrate]\nrun = 'true'\n", true, None),
            told("[start.env]\nDATABASE_URL = 'sqlite:x'\n", true, None),
            told(backup, true, Some(none.clone())),
            told(backup, false, Some(none)),
            told(backup, true, Some(status(&[], None))),
            told(backup, true, Some(status(&["db"], None))),
            told(backup, true, Some(status(&[], Some((60, Depth::Checksums, false))))),
            told(&rehearsed, true, Some(status(&[], Some((3_600, Depth::Restore, true))))),
            told(&rehearsed, true, Some(status(&[], Some((300_000, Depth::Restore, true))))),
            told(&rehearsed, true, Some(status(&[], Some((60, Depth::Checksums, true))))),
        ];
        insta::assert_snapshot!(all.join("\n"));
    }
}
