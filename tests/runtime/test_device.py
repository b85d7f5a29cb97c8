"""Memory and precision of a run on this machine."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from crkd_cli.runtime.device import configure_backends, pick_precision

# Prints how many pages the kernel maps in three training steps: the fewest of three measurements,
# because the heap may still grow once.
PROGRAM = """
import resource, torch
from crkd_cli.runtime.device import keep_freed_memory
if {keep}:
    keep_freed_memory()
network = torch.nn.Sequential(*[torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.ReLU()] * 2)
image = torch.randn(8, 1, 512, 512)
faults = []
for step in range(22):
    if step % 3 == 0:
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    network(image).square().mean().backward()
print(min(after - before for before, after in zip(faults[-4:], faults[-3:])))
"""


def count_page_faults(keep: bool) -> int:
    command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_freed_memory_is_reused() -> None:
    assert count_page_faults(keep=False) > 5000
    assert count_page_faults(keep=True) < 500


def test_auto_picks_one_precision_and_draws_no_random_numbers() -> None:
    """Which one depends on the machine; it is measured once."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    picked = {pick_precision("auto", torch.device("cpu")) for _ in range(3)}
    assert len(picked) == 1
    assert picked <= {torch.bfloat16, torch.float32}
    assert torch.equal(torch.rand(3), expected)


def test_deterministic_runs_do_not_fill_new_memory(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default torch then fills all of it with NaN, in a pass of its own."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    request.addfinalizer(partial(configure_backends, deterministic=False))
    configure_backends(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.empty(1000).isnan().all()
