"""The page of a comparison: complete in itself, accessible, and within its window in a real browser, wide and narrow."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser

import pytest
from PIL import Image

from crkd_cli.config import Frame

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page(HTMLParser):
    """Elements with their attributes, in order, and the text of headings."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.headings, self._in = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in = tag

    def handle_data(self, data):
        if re.fullmatch("h[1-3]", self._in) and data.strip():
            self.headings.append((self._in, data))
            self._in = ""

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(params=[2, 3])
def runs(request, cli, make_store, make_checkpoint, tmp_path):
    """Two evaluated runs over seven test cases, with a log."""
    dims = request.param
    store = make_store(groups=8, dims=dims)
    frame = Frame(resize=(32, 32)) if dims == 2 else Frame(patch=(16, 16, 16))
    folders = []
    for seed in (1, 2):
        test = tuple(f"p{number:02d}" for number in range(7))
        file = make_checkpoint(
            store.spec, frame, f"runs/toy-{seed}/last.pth", ("p07",), test=test, seed=seed
        )
        shares = {"share_1": 0.2, "label_share_1": 0.1}
        log = [
            {"step": step, "total": 1 / step, "val/dice": step / 10, **shares} for step in (1, 2, 3)
        ]
        (file.parent / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        assert cli("evaluate", file, "--data-root", tmp_path / "data", "--quiet").exit_code == 0
        folders.append(file.parent)
    return folders


@pytest.fixture
def report(cli, runs, tmp_path):
    return made(cli, runs, tmp_path)


def made(cli, runs, tmp_path):
    result = cli("compare", *runs, "--report", tmp_path / "page", "--data-root", tmp_path / "data")
    assert result.exit_code == 0, result.stderr
    assert f"written: {tmp_path / 'page' / 'index.html'}" in result.stderr
    return (tmp_path / "page" / "index.html").read_text(encoding="utf-8")


def test_the_page_is_whole(report, runs):
    page = Page(report)
    assert report.startswith("<!doctype html>")
    assert page.all("html") == [{"lang": "en"}]
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "iframe", "object")]
    sources = ("src", "href", "xlink:href")
    links = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in sources
    ]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert "@import" not in report
    assert not re.search(r"url\((?!#)", report)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    said = [svg["aria-label"] for svg in page.all("svg")]
    assert len(said) == 5  # three curves, two kinds of dots
    assert said[2] == (
        "disc, share of the pseudo-labels over training steps: supervised; dotted: 10 % of the labels"
    )
    sections = {text for level, text in page.headings if level == "h2"}
    assert {"Scores", "Learning curves", "Scores of every case", "Runs"} <= sections
    assert [level for level, _ in page.headings].count("h1") == 1
    # The worst and the best cases.
    with (runs[0] / "evaluation-strict-test" / "cases.csv").open(newline="") as file:
        rising = [
            row["case"] for row in sorted(csv.DictReader(file), key=lambda row: float(row["dice"]))
        ]
    shown = [
        text
        for level, text in Page(report).headings
        if level == "h3" and re.fullmatch(r"p\d\d", text)
    ]
    assert shown == [*rising[:3], *rising[:-4:-1]]
    for image in Page(report).all("img"):
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
            assert min(picture.size) > 300
            assert (255, 255, 255) in {
                color for _, color in picture.convert("RGB").getcolors(1 << 24)
            }  # the truth


@pytest.mark.parametrize("runs", [2], indirect=True)
def test_what_is_not_there_any_more_is_said(cli, runs, tmp_path, make_checkpoint):
    def refused(*words):
        result = cli(
            "compare", *runs, "--report", tmp_path / "page", "--data-root", tmp_path / "data"
        )
        last = result.stderr.splitlines()[-1]
        assert result.exit_code in (1, 2)
        assert last.startswith("error: ")
        assert all(word in last for word in words), last
        assert not (tmp_path / "page" / "index.html").exists()

    summary = runs[0] / "evaluation-strict-test" / "summary.json"
    text = summary.read_text()
    summary.write_text(text.replace('"step": 10', '"step": 9', 1))
    refused("is of step 10, but", "of step 9; run crkd evaluate again")
    summary.write_text(text)
    (tmp_path / "data" / "prepared" / "toy").rename(tmp_path / "data" / "prepared" / "other")
    refused("crkd prepare-data toy")
    (runs[0] / "last.pth").unlink()
    refused("there is no checkpoint", "last.pth")


@pytest.mark.parametrize("name", ["matplotlib", "jinja2"])
def test_without_the_extra(cli, write_evaluation, rng, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    folder = write_evaluation("run", rng.random((2, 2, 2)), {"a": "a", "b": "b"})
    result = cli("compare", folder, "--report", tmp_path / "page")
    assert result.exit_code == 2
    assert (
        result.stderr.splitlines()[-1]
        == f"error: --report needs {name}: pip install 'crkd[report]'"
    )
    assert cli("compare", folder).exit_code == 0


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.slow
@pytest.mark.parametrize("runs", [2], indirect=True)
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(cli, runs, tmp_path, width):
    """Inside a frame of that width, because a browser's own window may not become as narrow as a telephone."""
    summary = runs[1] / "evaluation-strict-test" / "summary.json"
    summary.write_text(summary.read_text().replace('"method": "supervised"', '"method": "bcp"'))
    report = made(cli, runs, tmp_path)
    assert (
        "(best)" in report
    )  # of two methods: marks for the eye, and words that are hidden from it
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f"""<!doctype html><meta charset="utf-8"><body style="margin: 0">
        <iframe style="border: 0; width: {width}px; height: 3000px" srcdoc="{escape(report)}"></iframe>
        <script>
          const frame = document.querySelector("iframe")
          frame.onload = () => {{
            const inside = frame.contentDocument, root = inside.documentElement
            const out = [...inside.querySelectorAll("section, figure, svg, .scroll, h1, h2, h3, p")]
              .filter(element => element.getBoundingClientRect().right > root.clientWidth)
            const blank = [...inside.images].filter(image => !image.naturalWidth)
            const found = [frame.contentWindow.innerWidth, root.scrollWidth - root.clientWidth, out.length, blank.length]
            document.body.append(`measured ${{found}} of ${{inside.images.length}}`)
          }}
        </script>""",
        encoding="utf-8",
    )
    browse = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/profile",
    ]
    page = ["--enable-logging=stderr", "--virtual-time-budget=5000", wrapper.as_uri()]
    measured = subprocess.run(
        [*browse, "--dump-dom", *page], capture_output=True, text=True, check=True, timeout=120
    )
    assert f"measured {width},0,0,0 of 6" in measured.stdout
    assert "CONSOLE" not in measured.stderr
    shot = tmp_path / "shot.png"
    window = [f"--screenshot={shot}", f"--window-size={width},3000"]
    subprocess.run([*browse, *window, *page], capture_output=True, check=True, timeout=120)
    with Image.open(shot) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100  # something was drawn
