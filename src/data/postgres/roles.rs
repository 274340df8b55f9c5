//! The roles of a PostgreSQL server, which no dump of a database has in it.
//!
//! `pg_dumpall --roles-only` writes them into a file beside the dump, before the dump begins. Hashes of passwords are in it where the user may read
//! them, which takes a superuser; else it is made without, and the manifest and the report say so.
//!
//! A restore makes those that are missing, before it touches the data: in one transaction, of SQL that is made anew of what was understood of
//! the file (`parse.rs`), never of the file itself. It is conservative, because a set may have come a long way:
//!
//! - a role that is there is left as it is, with everything that it has and is a member of;
//! - `SUPERUSER`, `CREATEROLE`, `REPLICATION` and `BYPASSRLS` reach beyond the database, and are not given back;
//! - memberships are given back only between roles that were both just made: no new role gets the rights of one that was there;
//! - of a role's settings only those that every user may change for itself, and no libraries to load.
//!
//! What was held back is told, each with the statement that gives it. Roles belong to the whole server, so they are made in a transaction of their
//! own, which all parts of a set see; a restore that fails before its last step drops those that it made. One that is killed leaves them, owning
//! nothing, and the next one finds them.

use std::{collections::HashMap, fmt::Write, io::Read, path::Path, time::Duration};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::{io::AsyncWriteExt, sync::Mutex};
use tokio_util::sync::CancellationToken;

use super::{
    Check, DataError,
    client::{Client, succeeded},
    conninfo_quote, shell_quote,
};
use crate::{
    config::{BackupSource, Compression},
    data::{
        RolesFile,
        kind::Stored,
        manifest::open_plain,
        part::{Doomed, PartWriter, Place},
    },
    runtime::Job,
};

use parse::{Membership, Role, RolesOf, parse};

mod parse;
#[cfg(test)]
mod tests;

/// A role is some hundred bytes of SQL.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// What `pg_dumpall` writes last.
const END: &[u8] = b"\n-- PostgreSQL database cluster dump complete";

/// How long dropping them again may take.
const UNDO: Duration = Duration::from_secs(10);

/// Attributes that are not given back.
const HELD_BACK: [&str; 4] = ["SUPERUSER", "CREATEROLE", "REPLICATION", "BYPASSRLS"];

/// Two parts of one server must not make the same role at the same time.
static MAKING: Mutex<()> = Mutex::const_new(());

const MAY_READ_PASSWORDS: &str = "SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT'), \
     pg_catalog.current_database();\n";

/// Writes the server's roles into a file of their own, which has to be kept.
pub(super) async fn dump(
    client: &Client<'_>,
    name: &str,
    source: &BackupSource,
    place: &Place<'_>,
    job: &Job,
) -> Result<(RolesFile, Doomed), DataError> {
    let (passwords, text) = written_by_pg_dumpall(client, job).await?;
    let mut writer = PartWriter::create(place, format!("{name}.roles.sql"), Compression::None).await?;
    let written = writer.write_all(&text).await;
    if let Some(error) = writer.failure(name) {
        return Err(error);
    }
    written.map_err(|error| DataError::dump(error.to_string()))?;
    let written = writer.finish(name).await?;
    let text = String::from_utf8_lossy(&text);
    let count = match parse(&text) {
        Ok(found) => found.roles.len(),
        // A person can look at it, and run it.
        Err(why) => {
            job.log.line(format!("warning: the roles of `{name}` would not be restored: {why}"));
            text.lines().filter(|line| line.starts_with("CREATE ROLE ")).count()
        }
    };
    let with = if passwords { "with" } else { "without" };
    job.log.line(format!("dumped the {count} roles of its server, {with} their passwords"));
    let restore = hint(&written.file, source);
    let file = RolesFile {
        file: written.file,
        sha256: written.sha256,
        bytes: written.bytes,
        count: count as u64,
        passwords,
        restore,
    };
    Ok((file, written.doomed))
}

/// Whether passwords are in it, and what it wrote.
async fn written_by_pg_dumpall(client: &Client<'_>, job: &Job) -> Result<(bool, Vec<u8>), DataError> {
    let answer = client.ask(MAY_READ_PASSWORDS, job).await?.join("\n");
    let Some((may, database)) = answer.split_once('|') else {
        return Err(DataError::dump("the server does not say what its user may read"));
    };
    // The connection's own database: another one may be out of this user's reach.
    let database = format!("--database=dbname={}", conninfo_quote(database));
    let mut arguments =
        vec!["pg_dumpall", "--roles-only", "--no-password", "--encoding=UTF8", "--lock-wait-timeout=30s", &database];
    let passwords = may == "t";
    if !passwords {
        arguments.push("--no-role-passwords");
    }
    let mut text = Vec::new();
    let (command, env) = (client.command(&arguments), client.env());
    let ended = client.exec().exec_into(client.container(), &command, &env, &mut text, job).await;
    succeeded("pg_dumpall", &ended?)?;
    if !text.windows(END.len()).any(|window| window == END) {
        return Err(DataError::dump("the roles are cut off: their closing line is missing"));
    }
    Ok((passwords, text))
}

fn hint(file: &str, source: &BackupSource) -> String {
    const LOAD: &str = "psql --no-psqlrc --quiet";
    match source {
        BackupSource::Postgres { container, user, .. } => {
            let (container, user) = (shell_quote(container), shell_quote(user));
            format!("cat {file} | docker exec -i {container} {LOAD} --username={user} --dbname=postgres")
        }
        _ => format!("{LOAD} --file={file} --host=HOST --username=USER --dbname=postgres"),
    }
}

/// Whether the file can be used; for people.
pub(super) fn look(stored: Stored<'_>) -> Option<Check> {
    let file = stored.part.roles.as_ref()?;
    Some(match read(&stored.set, file) {
        Ok(found) => {
            let with = if file.passwords { "with" } else { "without" };
            Check::good("roles", format!("{}, {with} their passwords", found.roles.len()))
        }
        Err(why) => Check::bad("roles", why.to_string()),
    })
}

fn read(set: &Path, file: &RolesFile) -> Result<RolesOf, DataError> {
    let path = set.join(&file.file);
    let mut text = Vec::new();
    let opened = open_plain(&path).and_then(|opened| opened.take(MOST_BYTES + 1).read_to_end(&mut text));
    opened.map_err(DataError::io("reading", &path))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(DataError::dump(format!("`{}` is larger than {MOST_BYTES} bytes", file.file)));
    }
    if hex::encode(Sha256::digest(&text)) != file.sha256 {
        return Err(DataError::dump(format!("`{}` was changed while it was read", file.file)));
    }
    let refused = |why: &str| DataError::dump(format!("`{}` is refused: {why}", file.file));
    let text = std::str::from_utf8(&text).map_err(|_| refused("it is not UTF-8"))?;
    parse(text).map_err(|why| refused(&why))
}

/// What was made of a set's roles.
#[derive(Debug, Default)]
pub(in crate::data) struct Made {
    names: Vec<String>,
    /// For people.
    pub notes: Vec<String>,
}

/// Makes the roles that are missing.
pub(in crate::data) async fn make(
    client: &Client<'_>,
    set: &Path,
    file: &RolesFile,
    job: &Job,
) -> Result<Made, DataError> {
    let (set, file) = (set.to_owned(), file.clone());
    let reading = tokio::task::spawn_blocking(move || read(&set, &file)).await;
    let found = reading.map_err(|error| DataError::dump(error.to_string()))??;
    let _one_at_a_time = MAKING.lock().await;
    let told = client.ask(SERVER, job).await?;
    let told = serde_json::from_str::<Server>(&told.concat());
    let server = told.map_err(|_| DataError::dump("the server does not say which roles it has"))?;
    let Plan { sql, made, notes } = Plan::make(&found, &server);
    if !sql.is_empty() {
        client.ask(&sql, job).await?;
        job.log.line(format!("made {} roles that were missing: {}", made.len(), listed(&made)));
    }
    Ok(Made { names: made, notes })
}

impl Made {
    /// Drops what was made, as far as nothing needs it. Also of a job that was cancelled.
    pub async fn undo(self, client: &Client<'_>, job: &Job) {
        if self.names.is_empty() {
            return;
        }
        let job = Job { log: job.log.clone(), cancel: CancellationToken::new() };
        let mut sql = format!("SET lock_timeout = '5s';\n{READING}BEGIN;\n");
        for name in self.names.iter().rev() {
            let _ = writeln!(sql, "DROP ROLE {};", ident(name));
        }
        sql.push_str("COMMIT;\n");
        let dropped = tokio::time::timeout(UNDO, client.ask(&sql, &job)).await;
        if !matches!(dropped, Ok(Ok(_))) {
            job.log.line(format!("the roles that were made stay, and own nothing: {}", listed(&self.names)));
        }
    }
}

const SERVER: &str = "SELECT pg_catalog.json_build_object('version', pg_catalog.current_setting('server_version_num')::int, \
     'user', rolname, 'superuser', rolsuper, 'createrole', rolcreaterole, 'createdb', rolcreatedb, \
     'roles', (SELECT pg_catalog.json_agg(r.rolname) FROM pg_catalog.pg_roles r), \
     'settings', (SELECT pg_catalog.json_object_agg(pg_catalog.lower(s.name), s.context) FROM pg_catalog.pg_settings s)) \
     FROM pg_catalog.pg_roles WHERE rolname = current_user;\n";

/// How what is made here is to be read.
const READING: &str = "\\set VERBOSITY terse\nSET client_encoding = 'UTF8';\nSET standard_conforming_strings = on;\n";

/// Passwords do not belong in the server's own log either. Only a superuser may say so.
const UNLOGGED: &str = "SET log_statement = 'none';\nSET log_min_duration_statement = -1;\n\
     SET log_min_error_statement = 'panic';\n";

/// What a server says of itself.
#[derive(Debug, Clone, Deserialize)]
struct Server {
    version: u32,
    user: String,
    superuser: bool,
    createrole: bool,
    createdb: bool,
    roles: Vec<String>,
    /// The name of each setting in lower case, and who may change it.
    settings: HashMap<String, String>,
}

/// What is to be done, and what not.
#[derive(Debug, Default)]
struct Plan {
    /// Empty where nothing is to be done.
    sql: String,
    made: Vec<String>,
    notes: Vec<String>,
}

impl Plan {
    fn make(found: &RolesOf, server: &Server) -> Self {
        let missing: Vec<&Role> = found.roles.iter().filter(|role| !server.has(&role.name)).collect();
        let mut plan = Self::default();
        if missing.is_empty() {
            return plan;
        }
        let names: Vec<String> = missing.iter().map(|role| role.name.clone()).collect();
        if !server.superuser && !server.createrole {
            let (names, user) = (listed(&names), &server.user);
            plan.notes
                .push(format!("roles are missing, and `{user}` may not make them, which takes CREATEROLE: {names}"));
            return plan;
        }
        plan.sql = format!("{READING}{}BEGIN;\n", if server.superuser { UNLOGGED } else { "" });
        missing.iter().for_each(|role| plan.role(role, server));
        found.memberships.iter().for_each(|membership| plan.membership(membership, &names, server));
        plan.sql.push_str("COMMIT;\n");
        if found.labels > 0 {
            plan.notes.push(format!("{} security labels of roles were not put back", found.labels));
        }
        plan.made = names;
        plan
    }

    fn role(&mut self, role: &Role, server: &Server) {
        let name = ident(&role.name);
        let may = |attribute: &&&str| {
            !HELD_BACK.contains(*attribute) && (**attribute != "CREATEDB" || server.superuser || server.createdb)
        };
        let (given, held): (Vec<&&str>, Vec<&&str>) = role.attributes.iter().partition(may);
        let _ = write!(self.sql, "CREATE ROLE {name} WITH");
        for (has, lacks) in parse::ATTRIBUTES {
            // Who is no superuser may not even say that another is none.
            let said = if given.contains(&&has) { has } else { lacks };
            if server.superuser || !HELD_BACK.contains(&has) {
                let _ = write!(self.sql, " {said}");
            }
        }
        if let Some(connections) = role.connections {
            let _ = write!(self.sql, " CONNECTION LIMIT {connections}");
        }
        if let Some(password) = &role.password {
            let _ = write!(self.sql, " PASSWORD {}", literal(password.expose()));
        }
        if let Some(until) = &role.valid_until {
            let _ = write!(self.sql, " VALID UNTIL {}", literal(until));
        }
        self.sql.push_str(";\n");
        if let Some(comment) = &role.comment {
            let _ = writeln!(self.sql, "COMMENT ON ROLE {name} IS {};", literal(comment));
        }
        if !held.is_empty() {
            let held = held.into_iter().copied().collect::<Vec<_>>().join(" ");
            self.held_back(&role.name, &format!("ALTER ROLE {name} WITH {held};"));
        }
        for (setting, values) in &role.settings {
            let values = values.iter().map(|value| literal(value)).collect::<Vec<_>>().join(", ");
            let statement = format!("ALTER ROLE {name} SET {} TO {values};", ident(setting));
            if server.lets_everybody_set(setting) {
                let _ = writeln!(self.sql, "{statement}");
            } else {
                self.held_back(&role.name, &statement);
            }
        }
    }

    fn membership(&mut self, membership: &Membership, made: &[String], server: &Server) {
        let Membership { role, member, admin, inherit, set } = membership;
        let mut options = Vec::new();
        if *admin {
            options.push("ADMIN OPTION".to_owned());
        }
        if server.version >= 160_000 {
            let truth = |value: bool| if value { "TRUE" } else { "FALSE" };
            options.extend(inherit.map(|inherit| format!("INHERIT {}", truth(inherit))));
            options.extend(set.map(|set| format!("SET {}", truth(set))));
        }
        let with = if options.is_empty() { String::new() } else { format!(" WITH {}", options.join(", ")) };
        let statement = format!("GRANT {} TO {}{with};", ident(role), ident(member));
        if made.contains(role) && made.contains(member) {
            let _ = writeln!(self.sql, "{statement}");
        } else if made.contains(role) || made.contains(member) {
            self.held_back(if made.contains(member) { member } else { role }, &statement);
        }
    }

    fn held_back(&mut self, role: &str, statement: &str) {
        let role = role.escape_debug();
        self.notes.push(format!("role `{role}` was made without what only you can give it back: {statement}"));
    }
}

impl Server {
    fn has(&self, role: &str) -> bool {
        self.roles.iter().any(|known| known == role)
    }

    /// A name with a dot is an app's own, unless an extension that is loaded says otherwise.
    fn lets_everybody_set(&self, setting: &str) -> bool {
        let setting = setting.to_lowercase();
        match self.settings.get(&setting) {
            Some(context) => context == "user" && !setting.ends_with("_libraries"),
            None => setting.contains('.'),
        }
    }
}

fn listed(names: &[String]) -> String {
    names.iter().map(|name| format!("`{}`", name.escape_debug())).collect::<Vec<_>>().join(", ")
}

fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Read in the same way whatever `standard_conforming_strings` is.
fn literal(text: &str) -> String {
    let text = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", text.replace('\\', "\\\\")) } else { format!("'{text}'") }
}
