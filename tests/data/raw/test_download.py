"""Downloads from a local HTTP server that breaks connections and fails on demand."""

import hashlib
import io
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from crkd_cli.cli.bars import progress
from crkd_cli.data.raw import download
from crkd_cli.data.raw.download import Remote, fetch
from crkd_cli.errors import CrkdError

CONTENT = bytes(range(256)) * 20_000  # 5 MB


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requested_ranges.append(self.headers.get("Range"))
        if server.replies:
            self.reply(*server.replies.pop(0))
            return
        if server.errors:
            self.send_error(server.errors.pop(0))
            return
        start = 0
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if requested and server.supports_ranges:
            start = int(requested[1])
            if start >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else len(CONTENT)
        self.wfile.write(CONTENT[start : start + cut])
        if cut < len(CONTENT):
            self.close_connection = True

    def reply(self, status, headers, content=b"", after=b""):
        """Send this; `after` is sent again and again until the client leaves."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        with suppress(OSError):
            while after:
                self.wfile.write(after)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server; cuts: bytes after which each connection breaks; errors: status codes to send.

    `replies` are (status, headers, content, …) to send first.
    """
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.cuts, running.errors, running.requested_ranges = [], [], []
    running.replies = []
    running.supports_ranges = True
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("CRKD_MIRROR", f"http://127.0.0.1:{running.server_port}/mirror/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def get(tmp_path):
    messages = []

    def call(sha256=None):
        remote = Remote("https://example.org/sets/set.zip", sha256)
        return fetch(remote, tmp_path / "raw", progress, messages.append), messages

    return call


def test_the_size_is_announced_and_the_file_complete(server, get, tmp_path, capsys):
    path, messages = get(hashlib.sha256(CONTENT).hexdigest())
    bar = r"^downloading set\.zip 4/4 MB, [0-9.]+ MB/s"
    assert re.search(bar, capsys.readouterr().err, re.MULTILINE)
    assert path == tmp_path / "raw/set.zip"
    assert path.read_bytes() == CONTENT
    url = f"http://127.0.0.1:{server.server_port}/mirror/set.zip"
    assert messages == [f"downloading {url} to {tmp_path / 'raw'}: 4.9 MB"]
    assert [file.name for file in path.parent.iterdir()] == ["set.zip"]
    get()
    assert server.requested_ranges == [None]  # the second call requested nothing


def test_an_interrupted_connection_is_resumed(server, get):
    server.cuts = [2_000_000, 1_000_000]
    assert get()[0].read_bytes() == CONTENT
    assert server.requested_ranges == [None, "bytes=2000000-", "bytes=3000000-"]


def test_an_earlier_run_is_resumed(server, get, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/set.zip.part").write_bytes(CONTENT[:4_000_000])
    path, messages = get()
    assert path.read_bytes() == CONTENT
    assert server.requested_ranges == ["bytes=4000000-"]
    assert "3 MB already downloaded" in messages[0]


def test_a_complete_partial_download_is_used(server, get, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/set.zip.part").write_bytes(CONTENT)
    assert get()[0].read_bytes() == CONTENT


def test_a_partial_download_of_another_file_is_restarted(server, get, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/set.zip.part").write_bytes(CONTENT + b"more")
    assert get()[0].read_bytes() == CONTENT


def test_servers_without_ranges(server, get):
    server.supports_ranges, server.cuts = False, [2_000_000]
    assert get()[0].read_bytes() == CONTENT


def test_server_errors(server, get, tmp_path):
    server.errors = [503, 502]
    assert get()[0].read_bytes() == CONTENT
    (tmp_path / "raw/set.zip").unlink()
    server.errors = [404]
    not_found = r"cannot download http.*set.zip: HTTP 404 Not Found; download it by hand"
    with pytest.raises(CrkdError, match=not_found):
        get()
    server.errors = [503] * 9
    unavailable = r"cannot download .* \(HTTP 503\); rerun the same command later to resume"
    with pytest.raises(CrkdError, match=unavailable):
        get()


def test_a_file_that_differs_from_the_published_one(server, get, tmp_path):
    with pytest.raises(CrkdError, match=r"set\.zip differs from the published file"):
        get("0" * 64)
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.parametrize(
    "mirror",
    ["foo", "ftp://127.0.0.1", "file:///etc", "data:text/plain,x", "//host", "http://[", "x:"],
)
def test_a_mirror_that_is_not_a_url(monkeypatch, get, mirror):
    monkeypatch.setenv("CRKD_MIRROR", mirror)
    invalid = rf"cannot download {re.escape(mirror)}.*/set\.zip: .*; set CRKD_MIRROR to a URL"
    with pytest.raises(CrkdError, match=invalid):
        get()


@pytest.mark.parametrize(
    "target",
    [
        "ftp://127.0.0.1/set.zip",
        "file:///etc/passwd",
        "data:text/plain,x",
        "gopher://x/",
        "javascript:x",
    ],
)
def test_redirects_to_other_protocols(server, get, tmp_path, target):
    server.replies = [(302, {"Location": target})]
    with pytest.raises(CrkdError, match=r"cannot download http.*set\.zip: ") as error:
        get()
    assert str(error.value).endswith("; download it by hand")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "raw").glob("set*"))
    assert len(server.requested_ranges) == 1


def test_a_redirect_to_the_same_server_and_a_circle(server, get, tmp_path):
    path = f"http://127.0.0.1:{server.server_port}/elsewhere"
    server.replies = [(302, {"Location": path}), (307, {"Location": "/again"})]
    assert get()[0].read_bytes() == CONTENT
    (tmp_path / "raw/set.zip").unlink()
    server.replies = [(302, {"Location": path})] * 20
    with pytest.raises(CrkdError, match=r"HTTP 302 .*loop.*; download it by hand") as error:
        get()
    assert "\n" not in str(error.value)


def test_https_leads_to_https_only():
    """A server with a certificate would be needed to ask for this; the handler is what decides."""
    handler = download._Redirects(("https",))
    request = download.Request("https://example.org/set.zip")
    arguments = (request, io.BytesIO(), 302, "Found", {})
    assert handler.redirect_request(*arguments, "https://other.org/x").full_url.endswith("org/x")
    with pytest.raises(CrkdError, match=r"leads to http://other\.org/x, which is not https"):
        handler.redirect_request(*arguments, "http://other.org/x")


LENGTH = {"Content-Length": str(len(CONTENT))}


@pytest.mark.parametrize(
    ("status", "headers", "problem"),
    [
        (200, {"Content-Length": "abc"}, r"states a length that is not a number \(abc\)"),
        (200, {"Content-Length": "-5"}, r"not a number \(-5\)"),
        (200, {"Content-Length": "5, 5"}, r"not a number \(5, 5\)"),
        (200, {"Content-Length": "9" * 5000}, "not a number"),
        (200, {"Content-Length": "9" * 18}, "is 953674316406 MB, but .* free some space"),
        (200, {"Content-Encoding": "gzip", **LENGTH}, r"sent compressed \(gzip\)"),
        (200, {"Content-Encoding": "br"}, r"sent compressed \(br\)"),
        (200, {"Content-Type": "text/html; charset=utf-8", **LENGTH}, "is a web page"),
        (200, {"Content-Type": "TEXT/HTML"}, "is a web page"),
        (204, {}, "HTTP 204"),
        (203, LENGTH, "HTTP 203"),
        (304, {}, "HTTP 304"),
        (403, {}, "HTTP 403 Forbidden"),
    ],
)
def test_replies_that_cannot_be_the_file(server, get, tmp_path, status, headers, problem):
    server.replies = [(status, headers)]
    with pytest.raises(CrkdError, match=problem) as error:
        get()
    assert len(str(error.value)) < 400
    assert not list((tmp_path / "raw").glob("set*"))
    assert len(server.requested_ranges) == 1


@pytest.mark.parametrize(
    "content_range",
    [
        None,
        "bytes 0-9/5120000",
        "bytes 4000001-5119999/5120000",
        "bytes 4000000-5119999/9",
        "x",
        "bytes */5120000",
    ],
)
def test_other_bytes_than_asked_for(server, get, tmp_path, content_range):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/set.zip.part").write_bytes(CONTENT[:4_000_000])
    rest = CONTENT[4_000_000:]
    headers = {"Content-Length": str(len(rest))}
    if content_range:
        headers["Content-Range"] = content_range
    server.replies = [(206, headers, rest)]
    assert get()[0].read_bytes() == CONTENT
    assert server.requested_ranges == ["bytes=4000000-", None]


def test_a_length_that_is_too_short_or_too_long(server, get, tmp_path):
    """What comes after the stated length is not read; what is missing is asked for."""
    server.replies = [(200, {"Content-Length": "1000"}, CONTENT[:1000], b"more" * 1000)]
    assert get()[0].read_bytes() == CONTENT[:1000]
    (tmp_path / "raw/set.zip").unlink()
    server.replies = [(200, {"Content-Length": str(len(CONTENT))}, CONTENT[:1000])]
    assert get()[0].read_bytes() == CONTENT


def test_an_endless_file_does_not_fill_the_disk(server, get, tmp_path, monkeypatch):
    free = download.shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(download, "RESERVED_BYTES", max(free - 50 * download.MB, 0))
    server.replies = [(200, {}, b"", bytes(1 << 16))]
    with pytest.raises(CrkdError, match="does not state its size and does not fit into"):
        get()
    assert not list((tmp_path / "raw").glob("set*"))


def test_a_chunked_file_that_breaks_off_is_not_complete(server, get):
    headers = {"Transfer-Encoding": "chunked"}
    server.replies = [
        (200, headers, b"3e8\r\n" + CONTENT[:1000] + b"\r\n3e8\r\nbroken"),
        (200, headers, b"zz\r\nbroken"),
    ]
    assert get()[0].read_bytes() == CONTENT


def test_no_server(monkeypatch, get):
    monkeypatch.setenv("CRKD_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with pytest.raises(CrkdError, match=r"Connection refused.*rerun the same command later"):
        get()
