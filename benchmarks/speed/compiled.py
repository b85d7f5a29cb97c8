"""Rows of torch.compile: a training pass of each network as it stands beside the compiled one, on a GPU as CUDA graphs too."""

from collections.abc import Iterator

import torch

from benchmarks.speed.inputs import Inputs
from benchmarks.speed.row import Row, timed
from benchmarks.speed.timing import Patience, Work, clock, in_turn
from crkd_cli.data.batch import Batch


def compiled(inputs: Inputs) -> Iterator[Row]:
    """The supervised step's passes: the method's other work is the same in both ways."""
    for name, what in (("acdc", "U-Net"), ("la", "V-Net")):
        run = inputs.run(name, method="supervised")
        batch = run.loader.batch(run.loader.read(0), 0)
        options: dict[str, dict[str, bool]] = {"torch.compile": {}}
        if run.device.type == "cuda":
            options["torch.compile with CUDA graphs"] = {"triton.cudagraphs": True}
        network = run.method.student
        size = "×".join(map(str, batch.labeled.image.shape[2:]))
        for way, chosen in options.items():
            torch.compiler.reset()
            row = Row(
                f"compile-{name}",
                "compile",
                f"{what}, {len(batch.labeled.image)} images {size}: {way}",
            )
            fast = torch.compile(network, backend=inputs.sizes.compiler, options=chosen or None)
            work = _passes(fast, batch, run.device, run.precision)
            try:
                row.note = f"the first call took {clock(work):.0f} s"
            except (
                Exception
            ) as error:  # compilers fail in their own ways, and the other rows are worth having
                row.note = f"{way} failed: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"
                yield row
                continue
            works = {"eager": _passes(network, batch, run.device, run.precision), "crkd": work}
            taken = in_turn(works, Patience(0.0, least=3))
            yield timed(row, taken["eager"], taken["crkd"])


def _passes(
    network: torch.nn.Module, batch: Batch, device: torch.device, precision: torch.dtype
) -> Work:
    """Forward and backward of the labeled images."""

    def work() -> None:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            total = network(batch.labeled.image).float().square().mean()
        total.backward()
        network.zero_grad(set_to_none=False)
        total.item()  # all is done

    return work
