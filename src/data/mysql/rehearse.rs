//! A dump tried out: loaded into a server of its own, counted, and thrown away.
//!
//! The server is a throw-away container of the image that the database itself runs in, so that its version is the same. It has no network, runs no
//! events, keeps nothing safe from a power cut, and is not the image's own way to start. First the data is loaded; then the users that
//! views, triggers and routines belong to are made, and those objects after them, as the last step of a restore makes them.

use std::{collections::BTreeSet, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    client::{Server, quoted},
    restore::{count, load},
    sieve::{Code, Purpose},
    swap,
};
use crate::{
    config::{BackupSource, DatabaseTools},
    data::{DataError, Reach, TableRows, kind::Stored, tools::Tools},
    log::DeploymentLog,
    model::Stage,
    redact::Redactor,
    runtime::{Job, ScratchContainer, ScratchImage, ScratchNetwork, ScratchRun, ScratchSpec},
};

/// Of the server, in bytes; what it reads and writes counts too, as far as it cannot be given back.
const MEMORY: u64 = 1 << 30;

/// Between two looks at whether the server answers.
const POLL: Duration = Duration::from_millis(200);

const SOCKET: &str = "--socket=/tmp/refit.sock";

/// MariaDB's and MySQL's programs differ in name and in how a first database is made.
const START: &str = r#"
set -e
umask 077
export PATH="$PATH:/usr/sbin:/usr/local/sbin:/usr/libexec"
dir=/tmp/refit-data
mkdir $dir
chown mysql $dir
server=$(command -v mariadbd || command -v mysqld)
if install=$(command -v mariadb-install-db || command -v mysql_install_db); then
    $install --no-defaults --user=mysql --datadir=$dir --auth-root-authentication-method=normal --skip-test-db >/dev/null
else
    $server --no-defaults --initialize-insecure --user=mysql --datadir=$dir
fi
exec $server --no-defaults --user=mysql --datadir=$dir --socket=/tmp/refit.sock --pid-file=/tmp/refit.pid --skip-networking \
    --skip-log-bin --event-scheduler=OFF --innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=0 --max-allowed-packet=1G
"#;

pub(super) async fn rehearse(stored: Stored<'_>, reach: Reach<'_>, job: &Job) -> Result<Vec<TableRows>, DataError> {
    let none = || DataError::dump("it can only be tried out in a container, and there is no Docker Engine");
    let (scratch, exec) = reach.scratch.zip(reach.containers).ok_or_else(none)?;
    let spec = ScratchSpec {
        key: stored.key,
        purpose: "rehearsal",
        image: image(&stored)?,
        run: ScratchRun::Program(&["/bin/sh", "-c", START]),
        env: &[],
        user: Some("root"),
        mounts: &[],
        network: ScratchNetwork::None,
        memory: MEMORY,
    };
    let container = scratch.open(&spec).await?;
    job.log.line(format!("trying `{}` out in container {}", stored.part.name, container.name()));
    let trying = async {
        let tools = Tools::beside(exec, container.name());
        let server = Server::through(tools, "root", None, |_| vec![SOCKET.to_owned()], job).await?;
        answers(&server, container.as_ref()).await?;
        load_and_count(&server, stored, job).await
    };
    let counted = tokio::select! {
        () = job.cancel.cancelled() => Err(DataError::Cancelled),
        counted = trying => counted,
    };
    if let Err(error) = container.remove().await {
        job.log.line(format!("the container it was tried out in is left for later: {error}"));
    }
    counted
}

/// The image that has a server for this dump.
fn image<'a>(stored: &Stored<'a>) -> Result<ScratchImage<'a>, DataError> {
    match stored.backup.map(|backup| &backup.source) {
        Some(BackupSource::Mysql { container, .. }) => return Ok(ScratchImage::Of(container)),
        Some(BackupSource::MysqlUrl { tools: DatabaseTools::Image(image), .. }) => {
            return Ok(ScratchImage::Named(image));
        }
        Some(BackupSource::MysqlUrl { .. }) => {
            return Err(DataError::dump(
                "there is no image to try it out in: set `tools` to an image that has a MySQL or MariaDB server of the same version",
            ));
        }
        _ => {}
    }
    let recorded = stored.part.source.container.as_deref().map(ScratchImage::Of);
    recorded.ok_or_else(|| DataError::dump("no configuration names an image to try it out in"))
}

/// Returns when the server takes connections.
async fn answers(server: &Server<'_>, container: &dyn ScratchContainer) -> Result<(), DataError> {
    // What is asked in vain is nothing for the log.
    let log = DeploymentLog::discard(Redactor::default()).stage(Stage::Backup);
    let quiet = Job { log, cancel: CancellationToken::new() };
    loop {
        if let Some((code, said)) = container.ended().await? {
            let said = said.iter().rev().take(3).rev().cloned().collect::<Vec<_>>().join("\n");
            let why = format!("no server to try it out in could be started (exit code {code}): {said}");
            return Err(DataError::dump(why));
        }
        if server.ask(None, "SELECT 1;\n", &quiet).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn load_and_count(server: &Server<'_>, stored: Stored<'_>, job: &Job) -> Result<Vec<TableRows>, DataError> {
    // Defaults may name sequences by the database that they were made in.
    let database = stored.part.source.database.as_deref().unwrap_or("rehearsal");
    server.ask(None, &format!("CREATE DATABASE {};\n", quoted(database)), job).await?;
    let sifted = load(server, database, stored.part, stored.set, Purpose::LoadData, job).await?;
    let mut users = String::new();
    for (user, host) in definers(&sifted.code) {
        let account = format!("{}@{}", string(&user), string(&host));
        users.push_str(&format!("CREATE USER IF NOT EXISTS {account};\nGRANT ALL ON *.* TO {account};\n"));
    }
    server.ask(None, &users, job).await?;
    swap::make_code(server, database, &sifted.code, job).await?;
    let noted: Vec<String> = match &stored.part.tables[..] {
        [] => sifted.heard.tables.into_keys().collect(),
        noted => noted.iter().map(|table| table.name.clone()).collect(),
    };
    let counted = count(server, database, noted.iter(), job).await?;
    Ok(counted.into_iter().map(|(name, rows)| TableRows { name, rows }).collect())
}

/// A plain string: names of accounts have no other form.
fn string(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// Who objects belong to: ``DEFINER=`user`@`host` ``, in either kind of quotes.
fn definers(code: &[Code]) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for statement in code {
        let statement = String::from_utf8_lossy(statement);
        let Some((_, rest)) = statement.split_once("DEFINER=") else { continue };
        let mut names = rest.chars();
        let Some(quote) = names.next().filter(|c| matches!(c, '`' | '"')) else { continue };
        let rest = names.as_str();
        let Some((user, rest)) = rest.split_once(quote) else { continue };
        let host =
            rest.strip_prefix('@').and_then(|rest| rest.strip_prefix(quote)).and_then(|rest| rest.split_once(quote));
        let Some((host, _)) = host else { continue };
        // A role, or an account that the server has.
        if !host.is_empty() && user != "mariadb.sys" && user != "mysql.sys" {
            found.insert((user.to_owned(), host.to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owners_of_objects_are_found() {
        let code = [
            "/*!50003 CREATE*/ /*!50017 DEFINER=`o'b`@`%`*/ /*!50003 TRIGGER t */",
            "CREATE DEFINER=\"ada\"@\"localhost\" PACKAGE x",
            "CREATE DEFINER=`ada`@`localhost` FUNCTION f() RETURNS int return 1",
            "SET @x = 1",
            "CREATE DEFINER=`broken",
        ];
        let code: Vec<Code> = code.iter().map(|text| text.as_bytes().to_vec()).collect();
        let found: Vec<_> = definers(&code).into_iter().collect();
        let pair = |user: &str, host: &str| (user.to_owned(), host.to_owned());
        assert_eq!(found, [pair("ada", "localhost"), pair("o'b", "%")]);
        assert_eq!(string(r"o'b\"), r"'o''b\\'");
    }
}
