"""The app's routes, as one WSGI callable.

    GET  /         the newest entries and a form
    POST /entries  `author` and `message`, form-encoded; back to the list when stored
    GET  /health   what the app says of itself and of its database, as JSON; 503 if it cannot do its work
"""

import json
import sys
from http import HTTPStatus
from urllib.parse import parse_qs

from . import pages
from .store import StoreError

SHOWN = 50
MAX_BODY = 16 * 1024  # bytes
MAX_AUTHOR = 80  # characters
MAX_MESSAGE = 1000
HTML = "text/html; charset=utf-8"


class Refused(Exception):
    """The request cannot be served as it is; the text tells the visitor why."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Guestbook:
    def __init__(self, store, version):
        self._store = store
        self._version = version
        self._routes = {
            "/": ("GET", self._list),
            "/entries": ("POST", self._sign),
            "/health": ("GET", self._health),
        }

    def __call__(self, environ, start_response):
        headers = []
        try:
            status, kind, text, headers = self._route(environ)
        except Refused as refused:
            status, kind, text = refused.status, HTML, pages.problem(str(refused), self._version)
        except StoreError as error:
            print(f"database {error}: {error.__cause__}", file=sys.stderr, flush=True)
            status, kind = HTTPStatus.SERVICE_UNAVAILABLE, HTML
            text = pages.problem("The guestbook cannot be opened just now. Please try again soon.", self._version)
        body = text.encode()
        start_response(
            f"{status.value} {status.phrase}",
            [
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
                *headers,
            ],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _route(self, environ):
        try:
            method, handler = self._routes[environ.get("PATH_INFO") or "/"]
        except KeyError:
            raise Refused(HTTPStatus.NOT_FOUND, "There is no such page.") from None
        asked = environ["REQUEST_METHOD"]
        if asked != method and not (asked == "HEAD" and method == "GET"):
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"This page only answers {method}.")
        return handler(environ)

    def _list(self, _environ):
        return HTTPStatus.OK, HTML, pages.entries(self._store.newest(SHOWN), self._version), []

    def _sign(self, environ):
        form = _form(environ)
        self._store.add(_field(form, "author", MAX_AUTHOR), _field(form, "message", MAX_MESSAGE))
        return HTTPStatus.SEE_OTHER, HTML, "", [("Location", "/")]

    def _health(self, _environ):
        status, database = HTTPStatus.OK, "ok"
        try:
            self._store.check()
        except StoreError as error:
            print(f"health: database {error}: {error.__cause__}", file=sys.stderr, flush=True)
            status, database = HTTPStatus.SERVICE_UNAVAILABLE, str(error)
        answer = {
            "status": "ok" if status is HTTPStatus.OK else "failing",
            "database": database,
            "version": self._version,
        }
        return status, "application/json", json.dumps(answer), []


def _form(environ):
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError:
        raise Refused(HTTPStatus.BAD_REQUEST, "The request has no proper length.") from None
    if length < 0:
        raise Refused(HTTPStatus.BAD_REQUEST, "The request has no proper length.")
    if length > MAX_BODY:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "That is too long for this guestbook.")
    body = environ["wsgi.input"].read(length)
    try:
        return parse_qs(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=16)
    except (UnicodeDecodeError, ValueError):
        raise Refused(HTTPStatus.BAD_REQUEST, "The form could not be read.") from None


def _field(form, name, limit):
    value = form.get(name, [""])[0].strip()
    if not value:
        raise Refused(HTTPStatus.BAD_REQUEST, f"Please fill in the {name}.")
    if len(value) > limit:
        raise Refused(HTTPStatus.BAD_REQUEST, f"The {name} is longer than {limit} characters.")
    if "\0" in value:
        # PostgreSQL's text has no room for it.
        raise Refused(HTTPStatus.BAD_REQUEST, f"The {name} holds a character that cannot be kept.")
    return value
