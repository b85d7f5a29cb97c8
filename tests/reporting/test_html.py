"""The report page: self-contained, accessible, and no wider than a browser's window."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from crkd_cli.config import Frame
from tests.conftest import edit_summary

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page(HTMLParser):
    """Collects elements with their attributes, and the texts of headings."""

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


@pytest.fixture(params=[2, pytest.param(3, marks=pytest.mark.slow)])
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
    return make_report(cli, runs, tmp_path)


def make_report(cli, runs, tmp_path):
    result = cli("compare", *runs, "--report", tmp_path / "page", "--data-root", tmp_path / "data")
    assert result.exit_code == 0, result.stderr
    assert f"written: {tmp_path / 'page' / 'index.html'}" in result.stderr
    return (tmp_path / "page" / "index.html").read_text(encoding="utf-8")


def decode(image: dict[str, str], kind: str) -> bytes:
    """Return the content of an image's data URI, or nothing if it is of another kind."""
    head, _, data = image["src"].partition(",")
    return base64.b64decode(data) if head == f"data:image/{kind};base64" else b""


@pytest.mark.slow
@pytest.mark.parametrize("runs", [2], indirect=True)
def test_the_page_is_self_contained_and_accessible(report):
    page = Page(report)
    assert report.startswith("<!doctype html>")
    assert page.all("html") == [{"lang": "en"}]
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "iframe", "object")]
    links = []
    for _, attributes in page.elements:
        links += [value for name, value in attributes.items() if name in ("src", "href")]
    assert all(link.startswith("data:image/") for link in links)
    assert "@import" not in report
    assert "url(" not in report
    assert all(image["alt"] for image in page.all("img"))
    assert [level for level, _ in page.headings].count("h1") == 1
    sections = {text for level, text in page.headings if level == "h2"}
    assert {"Scores", "Learning curves", "Scores of every case", "Runs"} <= sections


@pytest.mark.slow
@pytest.mark.parametrize("runs", [2], indirect=True)
def test_figures_are_images_with_a_text(report):
    images = [image for image in Page(report).all("img") if decode(image, "svg+xml")]
    texts = [image["alt"] for image in images]
    assert texts[:3] == [
        "Dice % on the validation cases over training steps: supervised",
        "training loss over training steps: supervised",
        "disc, share of the pseudo-labels over training steps: supervised; "
        "dotted: 10 % of the labels",
    ]
    assert [text.partition(" of every case; supervised: mean ")[0] for text in texts[3:]] == [
        "Dice %",
        "HD95 mm",
    ]
    for image in images:
        assert "card" in image["class"]  # light ground under dark ink
        svg = ElementTree.fromstring(decode(image, "svg+xml"))
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        width, height = (float(svg.get(name).removesuffix("pt")) for name in ("width", "height"))
        assert 200 < width < 400  # as wide as a phone's screen: its texts can be read there
        assert height < width
        links = []
        for element in svg.iter():
            links += [value for name, value in element.items() if name.endswith("href")]
        assert all(link.startswith("#") for link in links)


def test_the_worst_and_the_best_cases_are_shown(report, runs):
    with (runs[0] / "evaluation-strict-test" / "cases.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["dice"]))
    ascending = [row["case"] for row in rows]
    headings = [text for level, text in Page(report).headings if level == "h3"]
    cases = [text for text in headings if re.fullmatch(r"p\d\d", text)]
    assert cases == [*ascending[:3], *ascending[:-4:-1]]
    pictures = [decode(image, "png") for image in Page(report).all("img") if decode(image, "png")]
    assert len(pictures) == 6
    for content in pictures:
        with Image.open(io.BytesIO(content)) as picture:
            assert min(picture.size) > 300
            colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
            assert (255, 255, 255) in colors  # the reference


@pytest.mark.parametrize("runs", [2], indirect=True)
def test_missing_or_changed_files_are_named(cli, runs, tmp_path, make_checkpoint):
    def refused(*words):
        options = ("--report", tmp_path / "page", "--data-root", tmp_path / "data")
        result = cli("compare", *runs, *options)
        last = result.stderr.splitlines()[-1]
        assert result.exit_code in (1, 2)
        assert last.startswith("error: ")
        assert all(word in last for word in words), last
        assert not (tmp_path / "page" / "index.html").exists()

    folder = runs[0] / "evaluation-strict-test"
    edit_summary(folder, step=9)
    refused("is at step 10, but", "is of step 9; run crkd evaluate again")
    edit_summary(folder, step=10)
    (tmp_path / "data" / "prepared" / "toy").rename(tmp_path / "data" / "prepared" / "other")
    refused("crkd prepare-data toy")
    (runs[0] / "last.pth").unlink()
    refused("there is no checkpoint", "last.pth")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.slow
@pytest.mark.parametrize("runs", [2], indirect=True)
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(cli, runs, tmp_path, width):
    """Inside a frame of that width: a browser's own window may not become as narrow as a phone."""
    folder = runs[1] / "evaluation-strict-test"
    config = json.loads((folder / "summary.json").read_text())["config"]
    edit_summary(folder, method="bcp", config={**config, "method": "bcp"})
    report = make_report(cli, runs, tmp_path)
    assert "(best)" in report  # text for screen readers, visually hidden
    wrapper = tmp_path / "wrapper.html"
    style = f"border: 0; width: {width}px; height: 3000px"
    wrapper.write_text(
        f"""<!doctype html><meta charset="utf-8"><body style="margin: 0">
        <iframe style="{style}" srcdoc="{escape(report)}"></iframe>
        <script>
          const frame = document.querySelector("iframe")
          frame.onload = () => {{
            const page = frame.contentDocument, root = page.documentElement
            const selector = "section, figure, img, .scroll, h1, h2, h3, p"
            const outside = [...page.querySelectorAll(selector)]
              .filter(element => element.getBoundingClientRect().right > root.clientWidth)
            const blank = [...page.images].filter(image => !image.naturalWidth)
            const overflow = root.scrollWidth - root.clientWidth
            const counts = [frame.contentWindow.innerWidth, overflow, outside.length, blank.length]
            document.body.append(`measured ${{counts}} of ${{page.images.length}}`)
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
    assert f"measured {width},0,0,0 of 11" in measured.stdout
    assert "CONSOLE" not in measured.stderr
    shot = tmp_path / "shot.png"
    window = [f"--screenshot={shot}", f"--window-size={width},3000"]
    subprocess.run([*browse, *window, *page], capture_output=True, check=True, timeout=120)
    with Image.open(shot) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100  # something was drawn
