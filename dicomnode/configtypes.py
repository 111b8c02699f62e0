"""The kinds of values that a configuration holds: AE titles, ports, times of day, folders."""

from datetime import time
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationInfo

from dicomnode.configfile import Allowed

_AE_PATTERN = r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$"  # PS3.5 table 6.2-1, without outer blanks
_DATABASES = ("sqlite", "postgresql", "postgresql+psycopg")
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d"


def _from_working_folder(path: object) -> Path:
    if not isinstance(path, str | Path):
        raise ValueError("must be a path in quotes")  # pydantic turns ValueError into a fault
    return Path(path).resolve()


def _beside_the_file(path: Path | None, info: ValidationInfo) -> Path | None:
    folder = info.context or Path.cwd()  # the context is the folder of the TOML file
    return None if path is None else (folder / path).resolve()


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if url and parts.scheme not in _DATABASES:
        raise ValueError(
            f"is no database URL; it must begin with one of {', '.join(_DATABASES)}, each with ://"
        )
    if parts.password is not None or "password=" in parts.query:
        raise ValueError("holds a password; leave it out and set PGPASSWORD or PGPASSFILE instead")
    return url


def each_once(values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a list that names something twice."""
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f'"{twice[0]}" is there twice; each may be named once')
    return values


def times(window: str) -> tuple[time, time]:
    """Local times at which a window opens and closes."""
    opens, closes = (time.fromisoformat(part) for part in window.split("-"))
    return opens, closes


def is_within(window: str, local: time) -> bool:
    """Answer whether a local time of day lies in a window; windows may pass midnight, equal times: always."""
    opens, closes = times(window)
    if opens < closes:
        return opens <= local < closes
    return local >= opens or local < closes


AeTitle = Annotated[
    str,
    Field(pattern=_AE_PATTERN),
    Allowed("an AE title: 1 to 16 printable ASCII characters, no backslash, no blank at either end"),
]
Port = Annotated[int, Field(ge=1, le=65535)]
ListeningPort = Annotated[int, Field(ge=0, le=65535), Allowed("a TCP port, 1 to 65535; 0 takes a free one")]
Seconds = Annotated[float, Field(gt=0)]
Host = Annotated[str, Field(min_length=1), Allowed("a host name or an IP address")]
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    Allowed("1 to 64 letters, digits, '.', '_', '-'"),
]
ClockTime = Annotated[str, Field(pattern=f"^{_CLOCK}$"), Allowed('a time of day such as "03:30"')]
Window = Annotated[
    str, Field(pattern=f"^{_CLOCK}-{_CLOCK}$"), Allowed('two times of day such as "22:00-05:00"')
]
WorkingFolder = Annotated[Path, PlainValidator(_from_working_folder)]
FileBeside = Annotated[
    Path | None,
    BeforeValidator(lambda text: None if text == "" else text),
    AfterValidator(_beside_the_file),
    Allowed("a path in quotes, or empty"),
]
DatabaseUrl = Annotated[str, AfterValidator(_without_password), Allowed("a database URL, or empty")]
