"""`crkd doctor`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crkd_cli.cli.console import command, info, plain_text
from crkd_cli.cli.options import DataRoot, Device, Quiet, Verbose
from crkd_cli.errors import CrkdError, pluralize

if TYPE_CHECKING:
    from crkd_cli.runtime.machine import Finding

COLUMNS = 80  # when piped


@command
def doctor(
    data_root: DataRoot = None,
    device: Device = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check whether training can run here, and how fast.

    Example: crkd doctor

    Prints versions, device, memory, threads, disk space and folders, and times
    a small training step. If something would stop training, the exit code is 1
    and the last lines say what to do.
    """
    from crkd_cli.paths import resolve_data_root
    from crkd_cli.runtime.machine import (
        check_current_folder,
        check_data_root,
        check_memory,
        check_versions,
    )

    root = resolve_data_root(data_root)
    findings = [*check_versions(), check_memory(), check_data_root(root), check_current_folder()]
    info("loading PyTorch")
    findings += _check_training(device)
    if not quiet:
        _show(findings)
    problems = [f"{finding.name}: {finding.problem}" for finding in findings if finding.problem]
    if problems:
        raise CrkdError(f"{pluralize(len(problems), 'problem')} would stop training:", problems)
    info("ready to train")


def _check_training(device: str | None) -> list["Finding"]:
    """Return what needs PyTorch, or why it cannot be loaded."""
    from crkd_cli.runtime.machine import Finding

    try:
        from crkd_cli.training.trial import check_training
    except (ImportError, OSError) as error:  # such as a missing CUDA library
        reason = " ".join(str(error).split())
        problem = f"PyTorch cannot be loaded ({reason}); reinstall it"
        return [Finding("device", "unknown", problem)]
    return check_training(device)


def _show(findings: Sequence["Finding"]) -> None:
    """Print a line per finding, those with a problem marked by an exclamation mark."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for finding in findings:
        name = plain_text(f"! {finding.name}" if finding.problem else f"  {finding.name}")
        table.add_row(name, plain_text(finding.text))
    Console(width=None if sys.stdout.isatty() else COLUMNS).print(table)
