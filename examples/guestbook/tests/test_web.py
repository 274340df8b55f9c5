import json

import pytest

from guestbook import web
from guestbook.store import StoreError


def test_an_empty_book_says_so(visitor):
    answer = visitor.ask("GET", "/")
    assert answer["status"] == 200
    assert "Nobody has signed yet" in answer["body"]
    assert "version v1" in answer["body"]


def test_an_entry_is_stored_and_shown_newest_first(visitor):
    first = visitor.sign(b"author=Ada&message=Hello")
    assert (first["status"], first["headers"]["Location"]) == (303, "/")
    visitor.sign("author=Jos%C3%A9&message=Ol%C3%A1+mundo".encode())
    body = visitor.ask("GET", "/")["body"]
    assert "Olá mundo" in body
    assert body.index("José") < body.index("Ada")


def test_what_visitors_write_is_escaped(visitor):
    visitor.sign(b"author=%3Cb%3E%22A%22&message=%3Cscript%3Ealert(1)%3C/script%3E")
    body = visitor.ask("GET", "/")["body"]
    assert "<script>" not in body and "<b>" not in body
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body
    assert "&lt;b&gt;&quot;A&quot;" in body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"author=Ada", 400),
        (b"author=+&message=Hello", 400),
        (b"author=Ada&message=a%00b", 400),
        (b"author=Ada&message=%FF", 400),
        (b"\xff\xfe", 400),
        (b"&".join(b"a=%d" % n for n in range(20)), 400),
        (b"author=" + b"a" * 81 + b"&message=Hello", 400),
        (b"author=Ada&message=" + b"m" * 1001, 400),
        (b"author=Ada&message=" + b"m" * web.MAX_BODY, 413),
    ],
)
def test_a_form_that_cannot_be_kept_is_refused(visitor, shelf, body, status):
    assert visitor.sign(body)["status"] == status
    assert shelf.entries == []


def test_the_longest_allowed_entry_is_kept(visitor, shelf):
    assert visitor.sign(b"author=" + b"a" * 80 + b"&message=" + b"m" * 1000)["status"] == 303
    assert len(shelf.entries[0].message) == 1000


@pytest.mark.parametrize("length", ["many", "-1"])
def test_a_nonsense_length_is_refused(visitor, length):
    assert visitor.ask("POST", "/entries", b"author=A&message=B", length)["status"] == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("POST", "/", 405), ("GET", "/entries", 405), ("HEAD", "/entries", 405)],
)
def test_other_requests_are_refused(visitor, method, path, status):
    assert visitor.ask(method, path)["status"] == status


def test_head_has_the_headers_of_get_and_no_body(visitor):
    get, head = visitor.ask("GET", "/"), visitor.ask("HEAD", "/")
    assert head["headers"] == get["headers"]
    assert head["body"] == ""


def test_health_is_good_with_a_database(visitor):
    answer = visitor.ask("GET", "/health")
    assert answer["status"] == 200
    assert answer["headers"]["Content-Type"] == "application/json"
    assert json.loads(answer["body"]) == {"status": "ok", "database": "ok", "version": "v1"}


def test_health_says_why_it_is_bad(visitor, shelf):
    shelf.error = StoreError("unreachable")
    answer = visitor.ask("GET", "/health")
    assert answer["status"] == 503
    assert json.loads(answer["body"]) == {"status": "failing", "database": "unreachable", "version": "v1"}


def test_a_page_without_a_database_asks_for_patience(visitor, shelf):
    shelf.error = StoreError("unreachable")
    answer = visitor.ask("GET", "/")
    assert answer["status"] == 503
    assert "try again soon" in answer["body"]
    assert "unreachable" not in answer["body"]
    shelf.error = None
    assert visitor.ask("GET", "/")["status"] == 200
