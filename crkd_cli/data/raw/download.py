"""Download files: announce their size, resume after interruptions, and check what was received."""

import hashlib
import http.client
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from crkd_cli.errors import CrkdError
from crkd_cli.progress import Notify, Progress

MB = 1 << 20
MAX_FRUITLESS_TRIES = 5  # in a row, without receiving a byte
TIMEOUT_S = 60


@dataclass(frozen=True)
class Remote:
    """A file to download; `sha256` is None if its publisher does not state it."""

    url: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file name at the end of the URL."""
        return self.url.rpartition("/")[2]


def fetch(remote: Remote, folder: Path, progress: Progress, notify: Notify) -> Path:
    """Download `remote` into `folder`, or resume an earlier download.

    If $CRKD_MIRROR is set, it replaces the URL up to the file name. Raises CrkdError, which says
    what to do.
    """
    url = remote.url
    if mirror := os.environ.get("CRKD_MIRROR"):
        url = f"{mirror.rstrip('/')}/{remote.name}"
    target = folder / remote.name
    part = folder / f"{remote.name}.part"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(url, part, progress, notify)
        if remote.sha256 is not None and _sha256(part) != remote.sha256:
            part.unlink()
            raise CrkdError(
                f"{url} differs from the published file (by its SHA-256); try again later"
            )
        part.rename(target)
    except OSError as error:
        raise CrkdError(
            f"cannot write {part}: {error.strerror or error}; free some space or move it"
        ) from None
    return target


class _InterruptedError(Exception):
    """The connection was interrupted; what was received is kept."""


def _download(url: str, part: Path, progress: Progress, notify: Notify) -> None:
    """Connect again and again until `part` is complete."""
    fruitless = 0
    while fruitless < MAX_FRUITLESS_TRIES:
        size_before = _size(part)
        try:
            _receive(url, part, progress, notify)
            return
        except _InterruptedError as error:
            reason = error
        fruitless = 0 if _size(part) > size_before else fruitless + 1
        if fruitless:
            time.sleep(min(2**fruitless, 30) / 4)
    raise CrkdError(
        f"cannot download {url} ({reason}); rerun the same command later to resume the download"
    )


def _receive(url: str, part: Path, progress: Progress, notify: Notify) -> None:
    """Append what one connection delivers to `part`. Raises _InterruptedError if it is not all."""
    received = _size(part)
    response = _connect(url, part, received)
    if response is None:
        return
    with response:
        if response.status != 206:  # the server ignores ranges and sends the file from its start
            received = 0
        length = response.headers.get("Content-Length")
        total = received + int(length) if length else None
        _announce(url, part, received, total, notify)
        title = f"downloading {part.name.removesuffix('.part')}"
        total_mb = total and total // MB
        with (
            progress(title, total_mb, "MB") as advance,
            part.open("ab" if received else "wb") as file,
        ):
            advance(received // MB)
            while chunk := _read(response):
                file.write(chunk)
                before = received
                received += len(chunk)
                advance(received // MB - before // MB)
            os.fsync(file.fileno())
    if total is not None and received != total:
        raise _InterruptedError(f"received {received} of {total} bytes")


def _connect(url: str, part: Path, received: int) -> http.client.HTTPResponse | None:
    """Request the bytes after the first `received`; return None if `part` is complete."""
    try:
        headers = {"Range": f"bytes={received}-"} if received else {}
        response: http.client.HTTPResponse = urlopen(
            Request(url, headers=headers), timeout=TIMEOUT_S
        )
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416:
            _check_complete(error, part, received)
            return None
        if error.code >= 500:
            raise _InterruptedError(f"HTTP {error.code}") from None
        raise CrkdError(
            f"cannot download {url}: HTTP {error.code} {error.reason}; download it by hand"
        ) from None
    except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _InterruptedError(str(error)) from None
    except ValueError as error:
        raise CrkdError(
            f"cannot download {url}: {error}; set CRKD_MIRROR to a URL such as https://…"
        ) from None


def _check_complete(error: HTTPError, part: Path, received: int) -> None:
    """Remove `part` and raise _InterruptedError unless it is as long as the remote file."""
    if error.headers.get("Content-Range", "") != f"bytes */{received}":
        part.unlink(missing_ok=True)
        raise _InterruptedError("the partial download did not match and was removed")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(MB)
    except http.client.IncompleteRead as error:
        return error.partial
    except (TimeoutError, ConnectionError, http.client.HTTPException):
        return b""  # the size tells that the file is incomplete


def _announce(url: str, part: Path, received: int, total: int | None, notify: Notify) -> None:
    """Tell the size of the download. Raises CrkdError if there is not enough space for it."""
    if total is None:
        notify(f"downloading {url} to {part.parent} (the server does not state its size)")
        return
    free = shutil.disk_usage(part.parent).free
    if total - received > free:
        raise CrkdError(
            f"{url} is {total // MB} MB, but {part.parent} has {free // MB} MB free; "
            "free some space"
        )
    resumed = f", {received // MB} MB already downloaded" if received else ""
    notify(f"downloading {url} to {part.parent}: {total / MB:.1f} MB{resumed}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
