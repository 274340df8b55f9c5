"""Brings the database's schema up to date: `python3 -m guestbook.migrate upgrade`.

Migrations are the files of `guestbook/migrations`, in the order of their names (`0001_create_entries.sql`). Each runs once, in
a transaction together with the row that remembers it, so that it is either there with its row or not there at all. One
runner works at a time (an advisory lock), and none waits long for a table that the live app is using: the migration fails
instead, and the app goes on.

Write each so that the version before it still works: that one serves until the new one is healthy, and again after a
rollback.
"""

import argparse
import hashlib
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from . import settings

DIRECTORY = Path(__file__).parent / "migrations"
# Any number will do, as long as nothing else in this database uses it.
LOCK = 7_042_001
LOCK_TIMEOUT = "5s"
CONNECT_TIMEOUT = 10  # seconds
NONE = "none"

TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name       text PRIMARY KEY,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class MigrationError(Exception):
    """The schema cannot be brought up to date; the text is for the operator."""


@dataclass(frozen=True)
class Migration:
    name: str
    sql: str

    @property
    def checksum(self):
        return hashlib.sha256(self.sql.encode()).hexdigest()


def available(directory=DIRECTORY):
    return [Migration(path.stem, path.read_text("utf-8")) for path in sorted(directory.glob("*.sql"))]


def pending(migrations, applied):
    """What is still to run. `applied` maps names to checksums."""
    for migration in migrations:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise MigrationError(f"{migration.name} was changed after it was applied: undo the change, add a new file")
    return [migration for migration in migrations if migration.name not in applied]


def upgrade(connection, migrations):
    """Runs what is pending, in order; returns the names."""
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", (LOCK_TIMEOUT,))
        try:
            # Held until the connection closes.
            cursor.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        except psycopg2.errors.LockNotAvailable:
            raise MigrationError("another migration is running: try again when it is done") from None
        cursor.execute(TABLE)
        todo = pending(migrations, _applied(cursor))
    connection.autocommit = False
    for migration in todo:
        _apply(connection, migration)
    return [migration.name for migration in todo]


def version(connection):
    """The last applied migration's name, or `none`."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('schema_migrations')")
        if cursor.fetchone()[0] is None:
            return NONE
        cursor.execute("SELECT max(name) FROM schema_migrations")
        return cursor.fetchone()[0] or NONE


def _applied(cursor):
    cursor.execute("SELECT name, checksum FROM schema_migrations")
    return dict(cursor.fetchall())


def _apply(connection, migration):
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(migration.sql)
            cursor.execute(
                "INSERT INTO schema_migrations (name, checksum) VALUES (%s, %s)", (migration.name, migration.checksum)
            )
    except psycopg2.errors.LockNotAvailable:
        raise MigrationError(
            f"{migration.name} waited {LOCK_TIMEOUT} for a lock and was undone: something holds a table it changes"
        ) from None
    except psycopg2.Error as error:
        raise MigrationError(f"{migration.name} failed and was undone: {str(error).strip()}") from error
    print(f"applied {migration.name}", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="guestbook.migrate", description="Brings the schema up to date.")
    parser.add_argument("command", choices=["upgrade", "version"])
    command = parser.parse_args(arguments).command
    try:
        with closing(psycopg2.connect(settings.database_url(), connect_timeout=CONNECT_TIMEOUT)) as connection:
            if command == "version":
                print(version(connection))
            elif not upgrade(connection, available()):
                print("nothing to do")
    except (settings.SettingsError, MigrationError) as error:
        sys.exit(f"migrate: {error}")
    except psycopg2.OperationalError as error:
        sys.exit(f"migrate: the database cannot be reached: {str(error).strip()}")


if __name__ == "__main__":
    main()
