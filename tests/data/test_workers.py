"""Worker processes: results in order, errors as in one process, no process left behind."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crkd_cli.data.cases import RawCase, labeled_case
from crkd_cli.data.workers import available_cores, choose_workers, map_cases
from crkd_cli.errors import CrkdError
from crkd_cli.progress import Advance, Progress
from tests.data.helpers import describe_process


def cases(*ids: str) -> list[RawCase]:
    return [labeled_case(name, name, Path(name), None) for name in ids]


def recorded(notes: list[str]) -> Progress:
    """Return a progress bar that appends its notes to `notes`."""

    @contextmanager
    def progress(title: str, total: int | None, unit: str) -> Iterator[Advance]:
        def advance(amount: int = 1, note: str = "") -> None:
            notes.append(note)

        yield advance

    return progress


def test_several_processes_return_the_results_in_order(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = [str(number) for number in range(20)]
    notes = []
    results = map_cases(describe_process, cases(*names), 2, recorded(notes), "reading")
    ids, processes, with_torch, threads = zip(*results, strict=True)
    assert list(ids) == names == notes
    assert len(set(processes)) <= 2
    assert os.getpid() not in processes
    assert not any(with_torch)
    assert set(threads) == {"1"}
    assert "OMP_NUM_THREADS" not in os.environ
    assert not multiprocessing.active_children()


def test_one_process_is_this_one():
    results = map_cases(describe_process, cases("a", "b"), 1, recorded([]), "reading")
    assert {process for _, process, *_ in results} == {os.getpid()}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_when_its_case_is_due(workers):
    notes: list[str] = []
    with pytest.raises(CrkdError, match="error: this case is damaged") as caught:
        map_cases(describe_process, cases("a", "b", "error", "c"), workers, recorded(notes), "")
    assert notes == ["a", "b"]
    assert caught.value.details == ("more",)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_killed_process_is_an_error_that_names_its_case():
    with pytest.raises(CrkdError, match=r"^killed: the process .* \(exit code -9\); .*--workers 1"):
        map_cases(describe_process, cases("a", "killed", "b"), 2, recorded([]), "reading")
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_processes_end_with_an_interruption():
    @contextmanager
    def interrupting(title: str, total: int | None, unit: str) -> Iterator[Advance]:
        def advance(amount: int = 1, note: str | None = None) -> None:
            raise KeyboardInterrupt

        yield advance

    with pytest.raises(KeyboardInterrupt):
        map_cases(describe_process, cases(*"abcdef"), 2, interrupting, "reading")
    assert not multiprocessing.active_children()


def test_little_data_is_read_by_one_process(tmp_path):
    def of_size(size: int, count: int) -> list[RawCase]:
        """Cases with an image of `size` bytes, which takes no space."""
        file = tmp_path / "image"
        with file.open("wb") as stream:
            stream.truncate(size)
        return [labeled_case(str(number), "a", file, None) for number in range(count)]

    assert choose_workers(of_size(1000, 100)) == 1
    assert choose_workers(cases("missing")) == 1
    assert choose_workers(of_size(2**20, 100)) == min(available_cores(), 3)
    assert choose_workers(of_size(2**40, 100)) == 1  # needs more memory than there is
