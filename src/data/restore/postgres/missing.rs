//! A database that is not there yet: made for a restore, as it was where it was dumped, and dropped again if that fails.
//!
//! The server's own database `postgres` is asked, and made use of. A server that does not let the user in there is taken to have the
//! database: connecting to it will tell.

use tokio_util::sync::CancellationToken;

use super::{Client, DataError, Job, Reach, Work};
use crate::{config::BackupSource, data::postgres::client::Url, model::EnvironmentKey};

/// Every server has it, unless somebody dropped it.
const MAINTENANCE: &str = "postgres";

/// Whether the database is there.
pub(in crate::data) async fn exists(
    source: &BackupSource,
    key: &EnvironmentKey,
    reach: Reach<'_>,
    job: &Job,
) -> Result<bool, DataError> {
    let sql = format!(
        "SELECT count(*) FROM pg_catalog.pg_database WHERE datname = pg_catalog.convert_from('\\x{}', 'UTF8');\n",
        hex::encode(name_of(source)?)
    );
    let answer = beside(source, key, reach, &sql, job).await?;
    Ok(answer.first().is_none_or(|count| count != "0"))
}

/// Makes the database where there is none. Whether it did.
pub(super) async fn make(work: &Work<'_>) -> Result<bool, DataError> {
    let source = &work.backup.source;
    if exists(source, work.key, work.reach, work.job).await.unwrap_or(true) {
        return Ok(false);
    }
    let name = name_of(source)?;
    let told = &work.part.source;
    let options = [("ENCODING", &told.encoding), ("LC_COLLATE", &told.collate), ("LC_CTYPE", &told.ctype)];
    let options: String = options.into_iter().filter_map(|(option, value)| clause(option, value.as_deref()?)).collect();
    let create = |options: &str| format!("CREATE DATABASE {} TEMPLATE template0{options};\n", quoted(&name));
    let mut made = beside(source, work.key, work.reach, &create(&options), work.job).await;
    if made.is_err() && !options.is_empty() {
        // Another machine may not have the locale.
        made = beside(source, work.key, work.reach, &create(""), work.job).await;
    }
    made.map_err(|error| DataError::dump(format!("there is no such database, and it could not be made: {error}")))?;
    work.job.log.line(format!("made the database `{name}`"));
    Ok(true)
}

/// Drops what [`make`] made.
pub(super) async fn unmake(work: &Work<'_>) {
    // This job may be cancelled.
    let job = Job { log: work.job.log.clone(), cancel: CancellationToken::new() };
    let Ok(name) = name_of(&work.backup.source) else { return };
    let sql = format!("DROP DATABASE IF EXISTS {};\n", quoted(&name));
    if let Err(error) = beside(&work.backup.source, work.key, work.reach, &sql, &job).await {
        job.log.line(format!("the database `{name}` was made for this and is left, empty: {error}"));
    }
}

/// Locales and encodings have plain names; a set that says otherwise is not believed.
fn clause(option: &str, value: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@');
    (!value.is_empty() && value.chars().all(plain)).then(|| format!(" {option} '{value}'"))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn name_of(source: &BackupSource) -> Result<String, DataError> {
    match source {
        BackupSource::Postgres { database, .. } => Ok(database.clone()),
        BackupSource::PostgresUrl { url, .. } => {
            Url::parse(url).map(|url| url.database().to_owned()).map_err(DataError::dump)
        }
        _ => Err(DataError::dump("not a PostgreSQL database")),
    }
}

/// What the maintenance database answers.
async fn beside(
    source: &BackupSource,
    key: &EnvironmentKey,
    reach: Reach<'_>,
    sql: &str,
    job: &Job,
) -> Result<Vec<String>, DataError> {
    let mut client = Client::open(source, key, reach, "").await?;
    client.aim_at(MAINTENANCE);
    let answer = client.ask(sql, job).await;
    client.close(job).await;
    answer
}

#[cfg(test)]
mod tests {
    use super::clause;

    #[test]
    fn only_plain_names_get_into_the_command() {
        assert_eq!(clause("LC_COLLATE", "de_DE.UTF-8@euro").as_deref(), Some(" LC_COLLATE 'de_DE.UTF-8@euro'"));
        for bad in ["", "C'; DROP DATABASE x; --", "a\\b", "a b", "\n"] {
            assert_eq!(clause("ENCODING", bad), None, "{bad}");
        }
    }
}
