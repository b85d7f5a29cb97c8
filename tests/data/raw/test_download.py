"""Downloads from a local HTTP server that breaks connections and fails on demand."""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from crkd_cli.cli.console import progress
from crkd_cli.data.raw import download
from crkd_cli.data.raw.download import Remote, fetch
from crkd_cli.errors import CrkdError

CONTENT = bytes(range(256)) * 20_000  # 5 MB


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requested_ranges.append(self.headers.get("Range"))
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

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server; cuts: bytes after which each connection breaks; errors: status codes to send."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.cuts, running.errors, running.requested_ranges = [], [], []
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


def test_a_mirror_that_is_not_a_url(monkeypatch, get):
    monkeypatch.setenv("CRKD_MIRROR", "foo")
    invalid = r"cannot download foo/set\.zip: unknown url type.*; set CRKD_MIRROR to a URL"
    with pytest.raises(CrkdError, match=invalid):
        get()


def test_no_server(monkeypatch, get):
    monkeypatch.setenv("CRKD_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with pytest.raises(CrkdError, match=r"Connection refused.*rerun the same command later"):
        get()
