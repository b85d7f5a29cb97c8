"""What the benchmarks share: facts about machine and code, result files, Markdown tables."""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from crkd_cli.paths import atomic_write

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "numpy", "scipy", "medpy", "monai")


def environment() -> dict[str, Any]:
    """Return the commit, the date, the CPU and the versions that a result depends on.

    The commit is $CRKD_COMMIT, else that of the checkout, with a + if it has local changes.
    """
    command = ["git", "describe", "--always", "--dirty=+", "--exclude", "*"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    versions = {name: version(name) for name in PACKAGES if find_spec(name)}
    return {
        "commit": os.environ.get("CRKD_COMMIT") or git.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": processor(),
        "versions": {"python": platform.python_version(), **versions},
    }


def processor() -> str:
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    names = re.findall(r"^model name\s*: (.+)$", text, flags=re.MULTILINE)
    return f"{[*names, platform.processor()][0]}, {os.cpu_count()} cores"


def slug(text: str) -> str:
    """Turn "AMD EPYC, 2 cores" into "amd-epyc-2-cores"."""
    return "-".join(re.findall(r"[a-z0-9.]+", text.lower()))


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def write_json(tree: dict[str, Any], file: Path) -> None:
    """Write `tree` with one entry per line, of a list one item per line."""
    entries = []
    for key, value in tree.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list):
            items = [json.dumps(item, ensure_ascii=False) for item in value]
            text = "[\n  " + ",\n  ".join(items) + "\n ]"
        entries.append(f" {json.dumps(key)}: {text}")
    write_text("{\n" + ",\n".join(entries) + "\n}\n", file)


def write_text(text: str, file: Path) -> None:
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def link(name: str, text: str = "") -> str:
    """Return a Markdown link from docs/ to a file in benchmarks/results."""
    return f"[{text or name}](../benchmarks/results/{name})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
