//! The `check` of a `[[backup]]`: a query that says whether data which was put back is the app's data.
//!
//! It has to give at least one row, and the first column of the first row must not be zero, false, empty or NULL. So `SELECT count(*) FROM
//! users` asks for a user, and `SELECT max(at) > now() - interval '1 day' FROM orders` for fresh orders.

use std::time::Duration;

use super::{
    DataError, PartKind, Reach,
    kind::{kind_of, place},
};
use crate::{config::Environment, model::Name, runtime::Job};

/// A query that says whether data is there does not need longer.
const LIMIT: Duration = Duration::from_secs(60);

/// Asks the databases of an environment, only those of `parts` where there are any. What was asked and answered, for people.
///
/// # Errors
/// [`DataError::Dump`] for the first query that fails or says no.
pub async fn check_data(
    environment: &Environment,
    parts: &[Name],
    reach: Reach<'_>,
    job: &Job,
) -> Result<Vec<String>, DataError> {
    let mut told = Vec::new();
    for backup in &environment.backups {
        let wanted = parts.is_empty() || parts.contains(&backup.name);
        let Some(query) = backup.check.as_ref().filter(|_| wanted) else { continue };
        let failed = |why: String| {
            let place = place(&backup.source);
            DataError::dump(job.log.redactor().mask(&format!("the `check` of `{}` in {place} {why}", backup.name)))
        };
        let asking = kind_of(PartKind::of(&backup.source)).ask(backup, &environment.key, query, reach, job);
        let answer = match tokio::time::timeout(LIMIT, asking).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(DataError::Cancelled)) => return Err(DataError::Cancelled),
            Ok(Err(error)) => return Err(failed(format!("failed: {error}"))),
            Err(_) => return Err(failed(format!("was not answered within {LIMIT:?}"))),
        };
        let shown = judge(answer).map_err(failed)?;
        let line = format!("the check of `{}` passed: {shown}", backup.name);
        job.log.line(&line);
        told.push(line);
    }
    Ok(told)
}

/// The first column of the first row; the error says what is wrong with it.
pub(super) fn judge(answer: Option<String>) -> Result<String, String> {
    const SHOWN: usize = 80;
    let Some(answer) = answer else { return Err("gave no row".to_owned()) };
    let shown: String = answer.chars().take(SHOWN).collect();
    let text = answer.trim().to_ascii_lowercase();
    let zero = text.parse::<f64>().is_ok_and(|number| number == 0.0);
    match text.as_str() {
        "" => Err("gave an empty value".to_owned()),
        "f" | "false" | "no" => Err(format!("said no: {shown}")),
        _ if zero => Err(format!("said no: {shown}")),
        _ => Ok(shown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_says_something_is_a_yes() {
        for good in ["1", "t", "true", "ada", "-1", "0.5", "2026-11-21"] {
            assert!(judge(Some(good.to_owned())).is_ok(), "{good}");
        }
        for bad in [None, Some(""), Some(" "), Some("0"), Some("0.00"), Some("f"), Some("False")] {
            assert!(judge(bad.map(str::to_owned)).is_err(), "{bad:?}");
        }
    }
}
