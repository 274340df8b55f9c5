"""What the app is told by its environment."""

import os
from dataclasses import dataclass
from typing import Mapping


class SettingsError(Exception):
    """A setting is missing or makes no sense; the text is for the operator."""


@dataclass(frozen=True)
class Settings:
    database_url: str
    port: int
    version: str


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    return Settings(
        database_url=database_url(environ),
        port=_port(environ.get("PORT", "8000")),
        version=environ.get("GUESTBOOK_VERSION") or "unknown",
    )


def database_url(environ: Mapping[str, str] = os.environ) -> str:
    url = environ.get("DATABASE_URL", "")
    if not url:
        raise SettingsError("DATABASE_URL is not set: postgresql://user:password@host:5432/database")
    return url


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text) < 65536:
        raise SettingsError(f"PORT is {text!r}: a number from 1 to 65535 is needed")
    return int(text)
