from datetime import datetime, timezone

import psycopg2
import pytest
from doubles import Connection

from guestbook.store import Entry, Store, StoreError

URL = "postgresql://guestbook:secret@db/guestbook"


def store(connection):
    return Store(URL, connect=lambda *_, **__: connection)


def test_entries_are_read_with_a_limit():
    when = datetime(2026, 5, 4, tzinfo=timezone.utc)
    connection = Connection({"SELECT author": [("Ada", "Hello", when)]})
    assert store(connection).newest(7) == [Entry("Ada", "Hello", when)]
    assert connection.executed[0][1] == (7,)
    assert connection.closed


def test_values_never_become_part_of_the_statement():
    connection = Connection()
    store(connection).add("Robert'); DROP TABLE entries;--", "Hello")
    sql, parameters = connection.executed[0]
    assert "DROP" not in sql
    assert parameters == ("Robert'); DROP TABLE entries;--", "Hello")
    assert (connection.committed, connection.closed) == (1, True)


def test_a_database_that_cannot_be_reached_is_named_without_its_address():
    def refuse(*_, **__):
        raise psycopg2.OperationalError("connection to server at db failed for guestbook:secret")

    with pytest.raises(StoreError, match="^unreachable$"):
        Store(URL, connect=refuse).check()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(psycopg2.errors.UndefinedTable("no table"), "not migrated"), (psycopg2.OperationalError("gone"), "failed")],
)
def test_a_failed_statement_is_rolled_back_and_the_connection_closed(error, reason):
    connection = Connection({"SELECT id": error})
    with pytest.raises(StoreError, match=f"^{reason}$"):
        store(connection).check()
    assert (connection.committed, connection.rolled_back, connection.closed) == (0, 1, True)
