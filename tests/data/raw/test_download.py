"""Downloads from a real HTTP server on this machine, which cuts connections, forgets ranges and lies on demand."""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from crkd_cli.cli.console import progress
from crkd_cli.data.raw import download
from crkd_cli.data.raw.download import fetch
from crkd_cli.data.sources.base import Remote
from crkd_cli.errors import CrkdError

CONTENT = bytes(range(256)) * 20_000  # 5 MB


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if server.errors:
            self.send_error(server.errors.pop(0))
            return
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and server.ranges:
            start = int(wanted[1])
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
    """A server; .cuts: bytes after which each connection breaks; .errors: statuses; .asked: the ranges asked for."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.cuts, running.errors, running.asked, running.ranges = [], [], [], True
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
    said = []

    def call(sha256=None):
        path = fetch(
            Remote("https://example.org/sets/set.zip", sha256),
            tmp_path / "raw",
            progress,
            said.append,
        )
        return path, said

    return call


def test_size_is_announced_and_the_file_whole(server, get, tmp_path, capsys):
    path, said = get(hashlib.sha256(CONTENT).hexdigest())
    assert re.search(
        r"^downloading set\.zip 4/4 MB, [0-9.]+ MB/s", capsys.readouterr().err, re.MULTILINE
    )
    assert path == tmp_path / "raw/set.zip"
    assert path.read_bytes() == CONTENT
    assert said == [
        f"downloading http://127.0.0.1:{server.server_port}/mirror/set.zip to {tmp_path / 'raw'}: 4.9 MB"
    ]
    assert [file.name for file in path.parent.iterdir()] == ["set.zip"]
    get()
    assert server.asked == [None]  # not asked for again


def test_a_cut_is_resumed_where_it_was(server, get):
    server.cuts = [2_000_000, 1_000_000]
    assert get()[0].read_bytes() == CONTENT
    assert server.asked == [None, "bytes=2000000-", "bytes=3000000-"]


def test_an_earlier_run_is_resumed(server, get, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/set.zip.part").write_bytes(CONTENT[:4_000_000])
    path, said = get()
    assert path.read_bytes() == CONTENT
    assert server.asked == ["bytes=4000000-"]
    assert "3 MB are there already" in said[0]


def test_a_complete_part_is_taken(server, get, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/set.zip.part").write_bytes(CONTENT)
    assert get()[0].read_bytes() == CONTENT


def test_a_part_that_does_not_fit_is_begun_anew(server, get, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/set.zip.part").write_bytes(CONTENT + b"more")
    assert get()[0].read_bytes() == CONTENT


def test_servers_without_ranges(server, get):
    server.ranges, server.cuts = False, [2_000_000]
    assert get()[0].read_bytes() == CONTENT


def test_errors_of_the_server(server, get, tmp_path):
    server.errors = [503, 502]
    assert get()[0].read_bytes() == CONTENT
    (tmp_path / "raw/set.zip").unlink()
    server.errors = [404]
    with pytest.raises(
        CrkdError, match=r"cannot download http.*set.zip: HTTP 404 Not Found; download it by hand"
    ):
        get()
    server.errors = [503] * 9
    with pytest.raises(
        CrkdError,
        match=r"cannot download .* \(HTTP 503\); run the same command again later: it goes on",
    ):
        get()


def test_another_file_than_published(server, get, tmp_path):
    with pytest.raises(CrkdError, match="is not the file that was published"):
        get("0" * 64)
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_mirror_that_is_no_address(monkeypatch, get):
    monkeypatch.setenv("CRKD_MIRROR", "foo")
    with pytest.raises(
        CrkdError,
        match=r"cannot download foo/set\.zip: unknown url type.*; set CRKD_MIRROR to an address",
    ):
        get()


def test_nobody_there(monkeypatch, get):
    monkeypatch.setenv("CRKD_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with pytest.raises(CrkdError, match=r"Connection refused.*run the same command again later"):
        get()
