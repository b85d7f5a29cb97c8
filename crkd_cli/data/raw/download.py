"""Download files: announce their size, resume after interruptions, and check what was received."""

import hashlib
import http.client
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from crkd_cli.errors import CrkdError
from crkd_cli.progress import Notify, Progress
from crkd_cli.text import shorten

MB = 1 << 20
MAX_FRUITLESS_TRIES = 5  # in a row, without receiving a byte
TIMEOUT_S = 60
RESERVED_BYTES = 100 * MB  # of free space, left by a download of unknown size


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

    If $CRKD_MIRROR is set, it replaces the URL up to the file name; only a mirror may use http
    instead of https. Raises CrkdError, which says what to do.
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
    """Reconnect until `part` is complete, or nothing is received several times in a row."""
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
        received, total = _check_headers(url, part, received, response)
        _announce(url, part, received, total, notify)
        limit = received + shutil.disk_usage(part.parent).free - RESERVED_BYTES
        title = f"downloading {part.name.removesuffix('.part')}"
        total_mb = total and total // MB
        with (
            progress(title, total_mb, "MB") as advance,
            part.open("ab" if received else "wb") as file,
        ):
            advance(received // MB)
            for chunk in _chunks(response):
                file.write(chunk)
                before = received
                received += len(chunk)
                advance(received // MB - before // MB)
                if total is None and received > limit:
                    part.unlink()
                    raise CrkdError(
                        f"{url} does not state its size and does not fit into {part.parent}; "
                        "free some space"
                    )
            os.fsync(file.fileno())
    if total is not None and received != total:
        raise _InterruptedError(f"received {received} of {total} bytes")


def _connect(url: str, part: Path, received: int) -> http.client.HTTPResponse | None:
    """Request the bytes after the first `received`; return None if `part` is complete."""
    try:
        allowed = ("http", "https") if urlsplit(url).scheme == "http" else ("https",)
        if urlsplit(url).scheme not in allowed:
            raise ValueError("it is not an https URL")
        headers = {"Range": f"bytes={received}-"} if received else {}
        request = Request(url, headers=headers)
        opener = build_opener(_Redirects(allowed))
        response: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_S)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416:
            _check_complete(error, part, received)
            return None
        if error.code >= 500:
            raise _InterruptedError(f"HTTP {error.code}") from None
        reason = shorten(str(error.reason))
        raise CrkdError(
            f"cannot download {url}: HTTP {error.code} {reason}; download it by hand"
        ) from None
    except (URLError, OSError, http.client.HTTPException) as error:
        raise _InterruptedError(shorten(str(error))) from None
    except ValueError as error:
        raise CrkdError(
            f"cannot download {url}: {shorten(str(error))}; set CRKD_MIRROR to a URL such as "
            "https://…"
        ) from None


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to the `allowed` schemes only."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = allowed

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in self._allowed:
            fp.close()
            raise CrkdError(
                f"cannot download {req.full_url}: it leads to {shorten(newurl)}, which is not "
                "https; download it by hand"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_headers(
    url: str, part: Path, received: int, response: http.client.HTTPResponse
) -> tuple[int, int | None]:
    """Return the offset of the response in the file, and the length of the file if it is stated.

    Raises CrkdError if this cannot be the file, and _InterruptedError if it is another part of it.
    """
    headers = response.headers
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise CrkdError(
            f"{url} is sent compressed ({shorten(encoding, 20)}), which was not asked for; "
            "download it by hand"
        )
    if headers.get_content_type() == "text/html":
        raise CrkdError(f"{url} is a web page instead of the file; download it by hand")
    if response.status not in (200, 206):
        raise CrkdError(f"cannot download {url}: HTTP {response.status}; download it by hand")

    length = headers.get("Content-Length")
    if length is not None and not re.fullmatch("[0-9]{1,18}", length.strip()):
        raise CrkdError(
            f"{url} states a length that is not a number ({shorten(length, 20)}); "
            "download it by hand"
        )
    count = int(length) if length is not None and not response.chunked else None
    if response.status == 200:  # the server ignores ranges and sends the file from its start
        return 0, count
    stated = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", headers.get("Content-Range", ""))
    total = None if count is None else received + count
    if stated and stated[2] != "*" and total is None:
        total = int(stated[2])
    if not stated or int(stated[1]) != received or stated[2] not in ("*", str(total)):
        part.unlink(missing_ok=True)
        raise _InterruptedError("the server sent another part of the file; it was removed")
    return received, total


def _check_complete(error: HTTPError, part: Path, received: int) -> None:
    """Remove `part` and raise _InterruptedError unless it is as long as the remote file."""
    if error.headers.get("Content-Range", "") != f"bytes */{received}":
        part.unlink(missing_ok=True)
        raise _InterruptedError("the partial download did not match and was removed")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield what the connection delivers. Raises _InterruptedError if it breaks."""
    try:
        while chunk := response.read(MB):
            yield chunk
    except http.client.IncompleteRead as error:
        yield error.partial
        raise _InterruptedError("the connection was closed") from None
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(shorten(str(error))) from None


def _announce(url: str, part: Path, received: int, total: int | None, notify: Notify) -> None:
    """Announce the size of the download. Raises CrkdError if there is not enough space for it."""
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
