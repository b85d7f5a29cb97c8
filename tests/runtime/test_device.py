"""What the engine asks of the machine."""

import subprocess
import sys

import pytest
import torch

from crkd_cli.runtime.device import pick_precision

PROGRAM = """
import resource, torch
from crkd_cli.runtime.device import keep_freed_memory
if {reuse}:
    keep_freed_memory()
network = torch.nn.Sequential(*[torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.ReLU()] * 2)
image = torch.randn(8, 1, 512, 512)
for step in range(15):
    if step == 12:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    network(image).square().mean().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be asked")
def test_freed_memory_is_used_again() -> None:
    """Pages that the kernel must map in three steps of training: thousands without, next to none with."""

    def faults(reuse: bool) -> int:
        program = PROGRAM.format(reuse=reuse)
        return int(
            subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True
            ).stdout
        )

    assert faults(reuse=False) > 5000
    assert faults(reuse=True) < 500


def test_auto_chooses_one_precision_and_keeps_it() -> None:
    """What it chooses depends on the machine; the measurement draws no random numbers and is made once."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    chosen = {pick_precision("auto", torch.device("cpu")) for _ in range(3)}
    assert len(chosen) == 1
    assert chosen <= {torch.bfloat16, torch.float32}
    assert torch.equal(torch.rand(3), expected)
