//! Where the database is: from the configuration to how it is connected to.

use std::{fmt, path::Path, str::FromStr};

use sqlx::{mysql::MySqlConnectOptions, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};

use super::SessionError;
use crate::{
    config::{BackupSource, Environment, MigrationDatabase, MigrationFiles},
    runtime::{ContainerExec, RuntimeError},
    secret::Secret,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    Postgres,
    Mysql,
    Sqlite,
}

impl Server {
    /// Whether a file and its row are undone together when it fails.
    pub fn undoes(self) -> bool {
        self != Self::Mysql
    }
}

/// A database that can be connected to.
#[derive(Clone)]
pub struct Place {
    /// For people, without secrets: ``PostgreSQL database `shop` in container `shop-db` ``.
    pub name: String,
    pub(super) options: Options,
}

#[derive(Clone)]
pub(super) enum Options {
    Postgres(Box<PgConnectOptions>),
    Mysql(Box<MySqlConnectOptions>),
    Sqlite(Box<SqliteConnectOptions>),
}

/// The options hold passwords.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Place {
    pub fn server(&self) -> Server {
        match self.options {
            Options::Postgres(_) => Server::Postgres,
            Options::Mysql(_) => Server::Mysql,
            Options::Sqlite(_) => Server::Sqlite,
        }
    }

    pub fn sqlite(path: &Path) -> Self {
        let options = SqliteConnectOptions::new().filename(path);
        Self { name: format!("SQLite database {}", path.display()), options: Options::Sqlite(Box::new(options)) }
    }
}

/// Finds the database of an environment's SQL files. A container is reached by its address: its port need not be published.
pub async fn place(
    environment: &Environment,
    files: &MigrationFiles,
    containers: &dyn ContainerExec,
) -> Result<Place, SessionError> {
    match &files.database {
        MigrationDatabase::Url(url) => of_url(url, containers).await,
        MigrationDatabase::Backup(name) => {
            let backup = environment.backups.iter().find(|backup| backup.name == *name);
            match backup.map(|backup| &backup.source) {
                Some(BackupSource::PostgresUrl { url, .. } | BackupSource::MysqlUrl { url, .. }) => {
                    of_url(url, containers).await
                }
                Some(BackupSource::Sqlite { path }) => Ok(Place::sqlite(path)),
                Some(BackupSource::Postgres { container, database, user, password, .. }) => {
                    let login = (user.as_str(), password.as_ref());
                    postgres(container, database, login, containers).await
                }
                Some(BackupSource::Mysql { container, database, user, password }) => {
                    let login = (user.as_str(), password.as_ref());
                    mysql(container, database, login, containers).await
                }
                // The configuration's reader lets nothing else through.
                _ => Err(SessionError::Unfit(format!("`{name}` is no database that SQL files can be applied to"))),
            }
        }
    }
}

async fn postgres(
    container: &str,
    database: &str,
    (user, password): (&str, Option<&Secret>),
    containers: &dyn ContainerExec,
) -> Result<Place, SessionError> {
    let name = format!("PostgreSQL database `{database}` in container `{container}`");
    let address = address(container, &name, containers).await?;
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(&address)
        .port(5432)
        .username(user)
        .database(database)
        .application_name("refit migrate");
    if let Some(password) = password {
        options = options.password(password.expose());
    }
    Ok(Place { name, options: Options::Postgres(Box::new(options)) })
}

async fn mysql(
    container: &str,
    database: &str,
    (user, password): (&str, Option<&Secret>),
    containers: &dyn ContainerExec,
) -> Result<Place, SessionError> {
    let name = format!("MySQL database `{database}` in container `{container}`");
    let address = address(container, &name, containers).await?;
    let mut options = MySqlConnectOptions::new().host(&address).port(3306).username(user).database(database);
    if let Some(password) = password {
        options = options.password(password.expose());
    }
    Ok(Place { name, options: Options::Mysql(Box::new(options)) })
}

async fn address(container: &str, name: &str, containers: &dyn ContainerExec) -> Result<String, SessionError> {
    let found = containers.address_of(container).await;
    found.map(|ip| ip.to_string()).map_err(|error| SessionError::unreachable(name, error))
}

async fn of_url(secret: &Secret, containers: &dyn ContainerExec) -> Result<Place, SessionError> {
    const BAD: &str = "`migrate.url` is not a database's URL: write postgres://USER:PASSWORD@HOST/DATABASE, mysql://… or sqlite:///PATH";
    let bad = || SessionError::Unfit(BAD.to_owned());
    let text = secret.expose();
    if text.is_empty() {
        let why = "`migrate.url` is empty: set the variable or file that it names, where this runs";
        return Err(SessionError::Unfit(why.to_owned()));
    }
    if text.starts_with("sqlite:") {
        let options = SqliteConnectOptions::from_str(text).map_err(|_| bad())?;
        let path = options.get_filename().to_owned();
        if !path.is_absolute() {
            let why = "the path in `migrate.url` is not absolute: write sqlite:///PATH, with three slashes";
            return Err(SessionError::Unfit(why.to_owned()));
        }
        return Ok(Place { options: Options::Sqlite(Box::new(options)), ..Place::sqlite(&path) });
    }
    let mut url = reqwest::Url::parse(text).map_err(|_| bad())?;
    let kind = if url.scheme().starts_with("postgres") { "PostgreSQL" } else { "MySQL" };
    let database = url.path().trim_start_matches('/').to_owned();
    let mut name = format!("{kind} database `{database}`");
    if let Some(host) = url.host_str().map(str::to_owned) {
        name = format!("{name} at `{host}`");
        match containers.address_of(&host).await {
            Ok(ip) => url.set_host(Some(&ip.to_string())).map_err(|_| bad())?,
            // It is no container's name, or there is no engine that could know: DNS does.
            Err(RuntimeError::Missing { .. } | RuntimeError::Unavailable { .. }) => {}
            Err(error) => return Err(SessionError::unreachable(&name, error)),
        }
    }
    let options = if kind == "PostgreSQL" {
        let options = PgConnectOptions::from_str(url.as_str()).map_err(|_| bad())?;
        Options::Postgres(Box::new(options.application_name("refit migrate")))
    } else {
        Options::Mysql(Box::new(MySqlConnectOptions::from_str(url.as_str()).map_err(|_| bad())?))
    };
    Ok(Place { name, options })
}
