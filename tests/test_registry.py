"""Plug-ins from a user's file or an installed package: mistakes are one line with the file."""

import subprocess
import sys
from pathlib import Path

import pytest

from crkd_cli.errors import UsageError
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method

HEAD = "from crkd_cli.methods import METHODS\nfrom crkd_cli.methods.base import Method\n"
GOOD = HEAD + "@METHODS.register\nclass A(Method):\n    def losses(self, batch, step): return {}\n"


def test_a_file_is_a_plugin(tmp_path: Path) -> None:
    file = tmp_path / "flow.py"
    file.write_text(GOOD)
    assert METHODS.add(file) == "flow"
    assert issubclass(METHODS["flow"], Method)
    assert "flow" not in METHODS.names()
    assert METHODS.source("flow") == file.read_bytes()
    assert METHODS.source("crkd") is None
    first = METHODS["flow"]
    file.write_text(GOOD.replace("class A", "class B"))  # edited while this process runs
    assert METHODS["flow"] is first
    METHODS.add(file)
    assert METHODS["flow"].__name__ == "B"
    assert [path.name for path in tmp_path.iterdir()] == ["flow.py"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("absent.py", None, ["cannot read", "No such file"]),
        ("my-flow.py", GOOD, ["rename the file", "'my-flow'"]),
        ("crkd.py", GOOD, ["rename the file", "the name crkd is taken"]),
        ("base.py", GOOD, ["rename the file", "the name base is taken"]),
        ("broken.py", HEAD + "class A(Method:\n", ["SyntaxError", "line 3"]),
        ("broken.py", "\0", ["cannot be loaded", "null bytes"]),
        (
            "lost.py",
            "import nowhere_to_be_found\n",
            ["ModuleNotFoundError", "nowhere_to_be_found", "line 1"],
        ),
        (
            "raises.py",
            HEAD + "def f():\n    raise ValueError('two\\nlines')\nf()\n",
            ["ValueError: two lines", "line 4"],
        ),
        ("leaves.py", "raise SystemExit(0)\n", ["SystemExit: 0"]),
        ("none.py", HEAD + "class A(Method): pass\n", ["registers no class", ".register"]),
        ("two.py", GOOD + "@METHODS.register\nclass B(A): pass\n", ["registers 2 classes (A, B)"]),
        (
            "other.py",
            HEAD + "@METHODS.register\nclass A: pass\n",
            ["class A is not a method", "crkd_cli.methods.base"],
        ),
        (
            "abstract.py",
            HEAD + "@METHODS.register\nclass A(Method): pass\n",
            ["class A lacks an abstract method of crkd_cli.methods.base"],
        ),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, name: str, text: str | None, words: list[str]) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as error:
        METHODS.add(tmp_path / name)
    message = str(error.value)
    assert str(tmp_path / name) in message
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package with a good method, two broken ones, and one with a built-in name."""
    folder = tmp_path / "site"
    (folder / "outside").mkdir(parents=True)
    (folder / "outside" / "__init__.py").touch()
    (folder / "outside" / "a_method.py").write_text(GOOD)
    (folder / "outside" / "bad.py").write_text("1 / 0\n")
    information = folder / "outside-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    entries = [
        "tide = outside.a_method",
        "bad = outside.bad",
        "gone = not a module!",
        "crkd = outside.a_method",
    ]
    (information / "entry_points.txt").write_text("\n".join(["[crkd.methods]", *entries]))
    monkeypatch.syspath_prepend(folder)
    return folder


def test_entry_points_are_plugins(package: Path, tmp_path: Path) -> None:
    assert {"tide", "bad", "gone", "crkd", "supervised"} <= set(METHODS.names())
    assert (METHODS["tide"].__module__, METHODS["tide"].__name__) == ("outside.a_method", "A")
    assert METHODS["crkd"].__module__ == "crkd_cli.methods.crkd"
    for name, word in (("bad", "ZeroDivisionError"), ("gone", "ModuleNotFoundError")):
        with pytest.raises(UsageError, match=f"method {name} .*another package.*{word}"):
            METHODS[name]
    (tmp_path / "tide.py").write_text(GOOD)
    with pytest.raises(UsageError, match="the name tide is taken"):
        METHODS.add(tmp_path / "tide.py")


def test_the_list_of_methods_names_plugins_without_importing_them(package: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(package)!r})\n"
        "sys.argv = ['crkd', 'methods']\n"
        "from crkd_cli.cli import main\n"
        "try: main()\nfinally: assert not {'outside', 'torch'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "tide" in result.stdout
