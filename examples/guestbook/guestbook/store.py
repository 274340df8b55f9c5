"""The entries in PostgreSQL.

Each request opens its own connection. That costs a millisecond or two and buys the simplest behaviour when the database
goes away and comes back: the requests in between fail, the next one works, and nothing stale is left in a pool.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import psycopg2

# Seconds. libpq takes nothing shorter.
CONNECT_TIMEOUT = 2
# A page nobody waits for any more must not keep the database busy.
STATEMENT_TIMEOUT = "5s"


class StoreError(Exception):
    """The database did not do what was asked; the text is a short reason that may be shown."""


@dataclass(frozen=True)
class Entry:
    author: str
    message: str
    created_at: datetime


class Store:
    def __init__(self, url, connect=psycopg2.connect):
        self._url = url
        self._connect = connect

    def newest(self, limit):
        """At most `limit` entries, newest first."""
        with self._cursor() as cursor:
            cursor.execute("SELECT author, message, created_at FROM entries ORDER BY id DESC LIMIT %s", (limit,))
            return [Entry(*row) for row in cursor.fetchall()]

    def add(self, author, message):
        with self._cursor() as cursor:
            cursor.execute("INSERT INTO entries (author, message) VALUES (%s, %s)", (author, message))

    def check(self):
        """Raises `StoreError` unless the table that every page needs can be read."""
        with self._cursor() as cursor:
            cursor.execute("SELECT id FROM entries LIMIT 1")

    @contextmanager
    def _cursor(self):
        try:
            connection = self._connect(
                self._url,
                connect_timeout=CONNECT_TIMEOUT,
                application_name="guestbook",
                options=f"-c statement_timeout={STATEMENT_TIMEOUT}",
            )
        except psycopg2.Error as error:
            # libpq's text names host and user: it is for the log, not for visitors.
            raise StoreError("unreachable") from error
        try:
            # Commits, or rolls back when the block raised.
            with connection, connection.cursor() as cursor:
                yield cursor
        except psycopg2.errors.UndefinedTable as error:
            raise StoreError("not migrated") from error
        except psycopg2.Error as error:
            raise StoreError("failed") from error
        finally:
            connection.close()
