"""The processes of a training: Lightning Fabric starts them, one writes, and the end of one is reported in one line.

Fabric's processes all run the whole command: the first one comes to `launch`, which starts the others, and they come to
the same place. Before that, `s2robot.core.run_folder.is_first()` says which one is the first.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from s2robot.core.errors import UserError
from s2robot.core.run_folder import locked
from s2robot.training.settings import Machine


def launch(machine: Machine, where: str) -> Fabric:
    """Return Fabric with its processes started; UserError for a device, strategy or precision that is not there."""
    try:
        fabric = Fabric(
            accelerator=machine.accelerator,
            devices=machine.devices,
            num_nodes=machine.num_nodes,
            strategy=machine.strategy,
            precision=precision_of(machine),  # type: ignore[arg-type]  # Fabric names those that it knows
        )
        fabric.launch()
        if machine.threads:
            torch.set_num_threads(machine.threads)
    except (ValueError, RuntimeError, ImportError, TypeError) as error:  # of whatever a strategy needs
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error
    return fabric


def precision_of(machine: Machine) -> str:
    """Fabric's name of the precision; `auto` is bf16-mixed on a GPU that has bfloat16, and 32-true elsewhere."""
    if machine.precision != "auto":
        return machine.precision
    # what a GPU emulates is slower than float32
    fast = _on_gpu(machine) and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if fast else "32-true"


def _on_gpu(machine: Machine) -> bool:
    return machine.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()


def product_of(machine: Machine) -> torch.dtype:
    """The number format in which a step multiplies matrices: with `auto`, bfloat16 where the processor has it."""
    auto = machine.precision == "auto" and not _on_gpu(machine) and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if auto or precision_of(machine).startswith("bf16") else torch.float32


@contextmanager
def training_in(out: Path, fabric: Fabric, where: str) -> Iterator[None]:
    """Make the folder `out` and lock it against a second training; report a lost process in one line (UserError)."""
    with locked(out) if fabric.is_global_zero else nullcontext():
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, torch.distributed.DistError) or any(
                word in str(error).lower() for word in ("gloo", "nccl", "connection")
            )
            if fabric.world_size == 1 or not lost:
                raise
            raise UserError(
                f"{where}: process {fabric.global_rank + 1} of {fabric.world_size} lost another, which was killed or "
                "says in a line of its own why it ended; the same command resumes from the last state"
            ) from error


def check_shares(fabric: Fabric, key: str, found: int, whole: int) -> None:
    """Reject a batch of `whole` images or windows that the processes cannot share evenly (UserError)."""
    world = fabric.world_size
    if whole % world:
        raise UserError(
            f"{key}: expected a multiple of {world} a step for {world} processes, got {whole} ({found})"
        )


def mean_of_all(fabric: Fabric, value: Tensor) -> Tensor:
    """The mean over all processes."""
    if fabric.world_size == 1:
        return value
    total = fabric.all_reduce(value, reduce_op="mean")
    assert isinstance(total, Tensor)
    return total
