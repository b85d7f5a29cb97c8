"""Downloads: the size is announced first, a cut is resumed where it was, size and digest are checked at the end."""

import hashlib
import http.client
import os
import shutil
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from crkd_cli.data.sources.base import Remote
from crkd_cli.errors import CrkdError
from crkd_cli.progress import Notify, Progress

MB = 1 << 20
TRIES = 5  # in a row without a byte
TIMEOUT_S = 60


def fetch(remote: Remote, folder: Path, progress: Progress, notify: Notify) -> Path:
    """Download `remote` into `folder`, going on with what an earlier try left. Raises CrkdError that says what to do.

    $CRKD_MIRROR replaces the address up to the file's name.
    """
    mirror = os.environ.get("CRKD_MIRROR")
    url = f"{mirror.rstrip('/')}/{remote.name}" if mirror else remote.url
    target, part = folder / remote.name, folder / f"{remote.name}.part"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, progress, notify)
        if remote.sha256 is not None and _sha256(part) != remote.sha256:
            part.unlink()
            raise CrkdError(
                f"{url} is not the file that was published (its SHA-256 differs); try again later"
            )
        part.rename(target)
    except OSError as error:
        raise CrkdError(
            f"cannot write {part}: {error.strerror or error}; free some space or move it"
        ) from None
    return target


class _Cut(Exception):
    """The connection broke off; the part that came is kept."""


def _fetch(url: str, part: Path, progress: Progress, notify: Notify) -> None:
    fruitless = 0
    while fruitless < TRIES:
        before = _size(part)
        try:
            _receive(url, part, progress, notify)
            return
        except _Cut as cut:
            reason = cut
        fruitless = 0 if _size(part) > before else fruitless + 1
        if fruitless:
            time.sleep(min(2**fruitless, 30) / 4)
    raise CrkdError(
        f"cannot download {url} ({reason}); run the same command again later: it goes on where it was"
    )


def _receive(url: str, part: Path, progress: Progress, notify: Notify) -> None:
    """One connection's worth, appended to `part`. Returns when the file is complete; raises _Cut if it is not."""
    have = _size(part)
    try:
        request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        response = urlopen(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # nothing left to send: the part is complete, or not of this file
            if error.headers.get("Content-Range", "") == f"bytes */{have}":
                return
            part.unlink(missing_ok=True)
            raise _Cut("the part that was there did not fit") from None
        if error.code >= 500:
            raise _Cut(f"HTTP {error.code}") from None
        raise CrkdError(
            f"cannot download {url}: HTTP {error.code} {error.reason}; download it by hand"
        ) from None
    except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _Cut(str(error)) from None
    except ValueError as error:
        raise CrkdError(
            f"cannot download {url}: {error}; set CRKD_MIRROR to an address, https://… for example"
        ) from None
    with response:
        if response.status != 206:  # the whole file: the server does not know ranges
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        _announce(url, part, have, total, notify)
        with progress(
            f"downloading {part.name.removesuffix('.part')}", total and total // MB, "MB"
        ) as advance:
            advance(have // MB)
            with part.open("ab" if have else "wb") as file:
                while chunk := _read(response):
                    file.write(chunk)
                    have += len(chunk)
                    advance(have // MB - (have - len(chunk)) // MB)
                os.fsync(file.fileno())
    if total is not None and have != total:
        raise _Cut(f"{have} of {total} bytes came")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(MB)
    except http.client.IncompleteRead as error:
        return error.partial
    except (TimeoutError, ConnectionError, http.client.HTTPException):
        return b""  # a cut: seen by the size, and resumed


def _announce(url: str, part: Path, have: int, total: int | None, notify: Notify) -> None:
    if total is None:
        notify(f"downloading {url} to {part.parent} (the server does not state its size)")
        return
    free = shutil.disk_usage(part.parent).free
    if total - have > free:
        raise CrkdError(
            f"{url} is {total // MB} MB, {part.parent} has {free // MB} MB free; free some space"
        )
    rest = f", {have // MB} MB are there already" if have else ""
    notify(f"downloading {url} to {part.parent}: {total / MB:.1f} MB{rest}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
