//! SQL files that bring a database's schema forward and back, in the format of sqlx, so that its own tool agrees.
//!
//! A migration is a number and a name: `migrations/7_add_mood.up.sql` with `7_add_mood.down.sql`, or `7_add_mood.sql` alone where there is no way
//! back. Which ones a database has, is told by its own table `_sqlx_migrations`: number, name, SHA-384 of the file, and whether it ended. Nothing else
//! is believed; there is no second list that could disagree. The SQL that applies a file and writes its row is sqlx's own (`sqlx::migrate::Migrate`), in
//! one transaction where the server can, so that a file and its row are there together or not at all.
//!
//! | file | what |
//! |---|---|
//! | `files` | names and contents → a checked set of migrations: pure |
//! | `plan` | that set and the table → what is to be done, or why nothing can be: pure |
//! | `place` | the configuration → how the database is reached |
//! | `session` | one connection: the table, the lock, apply, revert |
//! | `carry` | carrying a plan out, file by file |
//! | `survey` | files and table side by side, for those who only look |
//!
//! **Everything is found out before anything is changed.** [`plan`] sees every file and every row at once and names all that is wrong, each with the way
//! out: a file that was edited after it was applied, one that is missing, a number that came too late, a migration that stopped half way.
//!
//! **Nobody waits for long.** A statement that wants a table which a long query holds makes every later query of the app wait behind it. So each statement
//! gives up after `lock_timeout` (`lock_timeout` of PostgreSQL, `lock_wait_timeout` of MySQL, the busy timeout of SQLite): that is how long the app
//! waits at most, and the migration fails with nothing changed.
//!
//! **Nobody migrates beside us.** The lock is sqlx's own (an advisory lock of the server, taken for the connection), so its tool, an app that migrates when
//! it starts, and Refit take turns. It has a second use: a process that was killed leaves a session on the server which may still be at work. Who gets the
//! lock knows that it is over, and only then is what the table says believed. (On PostgreSQL 14 and later the server itself notices within a second that the
//! other end is gone, and takes the transaction back.)
//!
//! What each server promises when a file fails, or the process dies in it:
//!
//! | server | then |
//! |---|---|
//! | PostgreSQL, SQLite | the file's transaction is undone: nothing of it is left |
//! | the same, `-- no-transaction` on the file's first line | what ran before the failure stays, without a row |
//! | MySQL, MariaDB | each change of a table commits by itself: the row says `success = false`, the database is *dirty*, a person decides |

mod carry;
mod files;
mod place;
mod plan;
mod session;
mod survey;
#[cfg(test)]
mod tests;

pub use carry::{Carried, Failure, NoWitness, State, Witness, down, look, up};
pub use files::{FileProblem, Files, Migration, files_of};
pub use place::{Place, Server, place};
pub use plan::{Applied, Problem, Problems, Row, RowState, newest, plan_down, plan_up, rows};
pub use session::{Session, SessionError};
pub use survey::{Survey, configured, survey};

/// The table that says what was applied; its name is sqlx's own default.
pub const TABLE: &str = "_sqlx_migrations";
