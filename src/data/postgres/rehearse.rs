//! A PostgreSQL dump tried out: loaded into a server of its own, counted, and thrown away.
//!
//! The server is a throw-away container of the image that the database itself runs in, so that versions, extensions and locales are the same. It
//! has no network, keeps nothing safe from a power cut, and is not the image's own way to start: `initdb` and `postgres`, as the
//! user `postgres`, in a directory of the container. The dump takes the same way into it as in a restore, with the roles that it names
//! made beforehand.

use std::{fmt::Write, sync::atomic::AtomicBool, time::Duration};

use super::{DataError, TableRows, client::Client, roles, script::identifier};
use crate::{
    config::{BackupSource, DatabaseTools},
    data::{
        Reach, check,
        kind::Stored,
        restore::{self, postgres::Loading},
    },
    log::DeploymentLog,
    runtime::{Job, ScratchImage, ScratchNetwork, ScratchRun, ScratchSpec},
};

/// Of the server, in bytes; what it reads and writes counts too, as far as it cannot be given back.
const MEMORY: u64 = 1 << 30;

/// Between two looks at whether the server answers.
const POLL: Duration = Duration::from_millis(100);

/// A user that no dump names.
const USER: &str = "refit_rehearsal";
const DATABASE: &str = "rehearsal";

/// Debian's packages have the server's programs beside `PATH`.
const START: &str = r#"
set -e
umask 077
newest=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
PATH="$PATH:$newest:/usr/local/pgsql/bin"
initdb --no-sync --encoding=UTF8 --no-locale --auth=trust --username="$0" --pgdata=/tmp/refit-data >/dev/null
exec postgres -D /tmp/refit-data -c listen_addresses= -c unix_socket_directories=/tmp -c fsync=off \
    -c full_page_writes=off -c synchronous_commit=off -c wal_level=minimal -c max_wal_senders=0 -c autovacuum=off
"#;

pub(super) async fn rehearse(stored: Stored<'_>, reach: Reach<'_>, job: &Job) -> Result<Vec<TableRows>, DataError> {
    let mut server = start(stored, reach, job).await?;
    let counted = tokio::select! {
        () = job.cancel.cancelled() => Err(DataError::Cancelled),
        counted = load_and_count(&mut server, stored, job) => counted,
    };
    server.close(job).await;
    counted
}

/// The image that has a server for this dump.
fn image<'a>(stored: &Stored<'a>) -> Result<ScratchImage<'a>, DataError> {
    match stored.backup.map(|backup| &backup.source) {
        Some(BackupSource::Postgres { container, .. }) => Ok(ScratchImage::Of(container)),
        Some(BackupSource::PostgresUrl { tools: DatabaseTools::Image(image), .. }) => Ok(ScratchImage::Named(image)),
        Some(BackupSource::PostgresUrl { .. }) => Err(DataError::dump(
            "there is no image to try it out in: set `tools` to an image that has a PostgreSQL server of the same version",
        )),
        _ => match &stored.part.source.container {
            Some(container) => Ok(ScratchImage::Of(container)),
            None => Err(DataError::dump("no configuration names an image to try it out in")),
        },
    }
}

async fn start<'a>(stored: Stored<'a>, reach: Reach<'a>, job: &Job) -> Result<Client<'a>, DataError> {
    let none = || DataError::dump("it can only be tried out in a container, and there is no Docker Engine");
    let (scratch, exec) = reach.scratch.zip(reach.containers).ok_or_else(none)?;
    let spec = ScratchSpec {
        key: stored.key,
        purpose: "rehearsal",
        image: image(&stored)?,
        run: ScratchRun::Program(&["/bin/sh", "-c", START, USER]),
        env: &[],
        user: Some("postgres"),
        mounts: &[],
        network: ScratchNetwork::None,
        memory: MEMORY,
    };
    let container = scratch.open(&spec).await?;
    job.log.line(format!("trying `{}` out in container {}", stored.part.name, container.name()));
    let client = Client::of_scratch(exec, container, target("postgres"));
    tokio::select! {
        () = job.cancel.cancelled() => Err(DataError::Cancelled),
        answers = answers(&client) => answers.map(|()| client),
    }
}

fn target(database: &str) -> Vec<String> {
    vec![format!("--username={USER}"), "--host=/tmp".to_owned(), format!("--dbname={database}")]
}

/// Returns when the server takes connections.
async fn answers(client: &Client<'_>) -> Result<(), DataError> {
    // What is asked in vain is nothing for the log.
    let quiet = Job {
        log: DeploymentLog::discard(crate::redact::Redactor::default()).stage(crate::model::Stage::Backup),
        cancel: tokio_util::sync::CancellationToken::new(),
    };
    let ask = ["pg_isready".to_owned(), "--quiet".to_owned(), "--host=/tmp".to_owned()];
    loop {
        if let Some(container) = client.scratch()
            && let Some((code, said)) = container.ended().await?
        {
            let said = said.iter().rev().take(3).rev().cloned().collect::<Vec<_>>().join("\n");
            return Err(DataError::dump(format!(
                "no server to try it out in could be started (exit code {code}): {said}"
            )));
        }
        let mut nothing = tokio::io::sink();
        let asked = client.exec().exec_into(client.container(), &ask, &[], &mut nothing, &quiet).await;
        if asked.is_ok_and(|outcome| outcome.code == 0) {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn load_and_count(server: &mut Client<'_>, stored: Stored<'_>, job: &Job) -> Result<Vec<TableRows>, DataError> {
    make_database(server, stored, job).await?;
    server.set_target(target(DATABASE));
    let server = &*server;
    let committing = AtomicBool::new(false);
    let loading =
        Loading { part: stored.part, set: stored.set, client: server, clear: false, job, committing: &committing };
    loading.run(None).await?;
    let names = match &stored.part.tables[..] {
        [] => server.ask(TABLES, job).await?,
        noted => noted.iter().map(|table| table.name.clone()).collect(),
    };
    let mut questions = String::new();
    for name in &names {
        if !is_table_name(name) {
            return Err(DataError::dump(format!("`{}` is no name of a table", name.escape_default())));
        }
        let _ = writeln!(questions, "SELECT count(*) FROM ONLY {name};");
    }
    let counts = server.ask(&questions, job).await?;
    if counts.len() != names.len() {
        return Err(DataError::dump("the rows could not be counted"));
    }
    if let Some(query) = stored.backup.and_then(|backup| backup.check.as_deref()) {
        let answer = restore::postgres::first(server, query, job).await?;
        check::judge(answer).map_err(|why| DataError::dump(format!("its `check` {why}")))?;
    }
    let rows = |count: &String| count.parse().map_err(|_| DataError::dump("the rows could not be counted"));
    names.into_iter().zip(&counts).map(|(name, count)| Ok(TableRows { name, rows: rows(count)? })).collect()
}

const TABLES: &str = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1;\n";

/// An empty database like the one that was dumped, and the roles that its objects belong to.
async fn make_database(client: &Client<'_>, stored: Stored<'_>, job: &Job) -> Result<(), DataError> {
    let source = &stored.part.source;
    if let Some(file) = &stored.part.roles {
        roles::make(client, &stored.set, file, job).await?;
    }
    let there = client.ask("SELECT pg_catalog.to_json(rolname) FROM pg_catalog.pg_roles;\n", job).await?;
    let roles = source.roles.iter().filter(|role| !role.starts_with("pg_"));
    let mut sql = String::new();
    for role in roles {
        // Some things may only belong to a superuser.
        let known = serde_json::to_string(role).is_ok_and(|role| there.contains(&role));
        let how = if known { "ALTER" } else { "CREATE" };
        let _ = writeln!(sql, "{how} ROLE {} SUPERUSER NOLOGIN;", quote(role, '"'));
    }
    client.ask(&sql, job).await?;
    let text = |value: &Option<String>, otherwise: &str| quote(value.as_deref().unwrap_or(otherwise), '\'');
    let encoding = text(&source.encoding, "UTF8");
    let create = |collate: &str, ctype: &str| {
        format!(
            "CREATE DATABASE {DATABASE} TEMPLATE template0 ENCODING {encoding} LC_COLLATE {collate} LC_CTYPE {ctype};\n"
        )
    };
    let like = create(&text(&source.collate, "C"), &text(&source.ctype, "C"));
    if client.ask(&like, job).await.is_err() {
        // A locale that this image does not have; every encoding goes with this one.
        client.ask(&create("'C'", "'C'"), job).await?;
    }
    Ok(())
}

fn quote(text: &str, with: char) -> String {
    format!("{with}{}{with}", text.replace(with, &format!("{with}{with}")))
}

/// Whether it is a name and nothing else: it comes from a manifest.
fn is_table_name(name: &str) -> bool {
    let mut rest = name;
    loop {
        match identifier(rest) {
            Some("") => return true,
            Some(after) => match after.strip_prefix('.') {
                Some(after) => rest = after,
                None => return false,
            },
            None => return false,
        }
    }
}
