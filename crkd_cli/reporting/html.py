"""A comparison as one page: tables, learning curves, every case's scores, and the best and worst cases as pictures.

The page needs nothing else: no scripts, no styles or pictures from elsewhere.
"""

import base64
import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from crkd_cli import __version__
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.inference import overlay
from crkd_cli.inference.inferer import build_inferer
from crkd_cli.metrics.names import format_values, metric_heading
from crkd_cli.metrics.summary import means
from crkd_cli.paths import atomic_write, create_output_folder
from crkd_cli.progress import Notify, Progress
from crkd_cli.reporting import figures
from crkd_cli.reporting.compare import Comparison, MethodResult
from crkd_cli.reporting.tables import Cell, Table, tables
from crkd_cli.runtime.checkpoint import load_checkpoint

SHOWN = 3  # best cases, and as many worst


@dataclass(frozen=True)
class CasePicture:
    """A case with its contours."""

    title: str
    text: str  # for those who cannot see it
    source: str  # data URI
    scores: list[tuple[str, str]]


def check_requirements() -> None:
    """Raises UsageError if a package that a report needs is missing."""
    if missing := [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]:
        raise UsageError(f"--report needs {' and '.join(missing)}: pip install 'crkd[report]'")


def write_report(
    comparison: Comparison,
    folder: Path,
    root: Path,
    notify: Notify,
    progress: Progress,
    device: str | None = None,
) -> Path:
    """Writes FOLDER/index.html; the pictures' label maps are inferred again, on cases of the store under the data root `root`.

    Raises CrkdError: the checkpoint or the store is missing, or is not what was evaluated.
    """
    from jinja2 import Environment, StrictUndefined

    create_output_folder(folder, "--report")
    leader = max(comparison.entries, key=lambda entry: entry.mean[0].mean)
    pictures = _pictures(comparison, leader, root, notify, progress, device)
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    one = comparison.one
    page = environment.from_string(template).render(
        facts=one.facts,
        cases=len(one.cases),
        patients=len(set(one.groups)),
        version=__version__,
        methods=[
            (entry.name, i % figures.COLOURS + 1, i // figures.COLOURS % 2)
            for i, entry in enumerate(comparison.entries)
        ],
        tables=tables(comparison),
        runs=_runs(comparison),
        curves=figures.curves(comparison),
        dots=figures.dots(comparison),
        unit=comparison.unit,
        leader=leader.name,
        seed=leader.runs[0].facts.seed,
        pictures=pictures,
    )
    file = folder / "index.html"
    with atomic_write(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return file


def _runs(comparison: Comparison) -> Table:
    rows = [
        [
            Cell(text)
            for text in (
                entry.name,
                str(run.folder),
                str(run.checkpoint),
                str(run.facts.seed),
                str(run.facts.step),
            )
        ]
        for entry in comparison.entries
        for run in entry.runs
    ]
    return Table("runs", ["method", "evaluation", "checkpoint", "seed", "step"], 3, [rows], [])


def _pictures(
    comparison: Comparison,
    leader: MethodResult,
    root: Path,
    notify: Notify,
    progress: Progress,
    device: str | None,
) -> dict[str, list[CasePicture]]:
    """The worst and best cases by the Dice of the first run of `leader`."""
    run = leader.runs[0]
    checkpoint = load_checkpoint(run.checkpoint)
    if checkpoint.step != run.facts.step:
        raise CrkdError(
            f"{run.checkpoint} is of step {checkpoint.step}, but {run.folder} of step {run.facts.step}; run crkd evaluate again"
        )
    store = Store(root / "prepared" / checkpoint.config.data.name)
    if lost := [case for case in run.cases if case not in store.cases]:
        raise CrkdError(
            f"{store.root} lacks {len(lost)} of the evaluated cases, {lost[0]} for one; give the right --data-root"
        )
    inferer = build_inferer(checkpoint, device, notify, run.facts.protocol)
    rising = [run.cases[i] for i in np.argsort(means(run.scores[:, :, 0]), kind="stable")]
    chosen = {"Worst": rising[:SHOWN], "Best": rising[SHOWN:][-SHOWN:][::-1]}
    pictures: dict[str, list[CasePicture]] = {title: [] for title, cases in chosen.items() if cases}
    with progress("drawing", sum(map(len, chosen.values())), "cases") as advance:
        for title, cases in chosen.items():
            for case in cases:
                truth = np.asarray(store.native_label(case))
                labels = inferer(store.image(case), truth.shape)
                drawn = overlay.draw_overlay(
                    store.image(case),
                    labels,
                    checkpoint.spec,
                    store.cases[case].spacing_mm,
                    case,
                    truth,
                )
                scores = run.scores[run.cases.index(case)]
                pictures[title].append(
                    _picture(case, drawn, [*zip(run.classes, scores, strict=True)], run.metrics)
                )
                advance(1, case)
    return pictures


def _picture(
    case: str, drawn: Image.Image, classes: list[tuple[str, np.ndarray]], metrics: list[str]
) -> CasePicture:
    file = io.BytesIO()
    drawn.save(file, format="PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    wanted = [
        m for m, metric in enumerate(metrics) if metric == "dice" or metric.startswith("hd95")
    ]
    scores = [
        (
            name,
            ", ".join(
                f"{metric_heading(metrics[m])} {format_values(metrics[m], float(values[m]))[0]}"
                for m in wanted
            ),
        )
        for name, values in classes
    ]
    text = f"{case}: the image with the model's contours in color and the truth in white"
    return CasePicture(case, text, source, scores)
