"""The processes of a training: Lightning Fabric starts them, one writes, and the end of one is one line.

Fabric's processes all run the whole command: the first comes as far as `launch`, which starts the others, and
they come to the same place. `s2robot.common.run_folder.is_first()` says before that who is who.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from s2robot.common.errors import UserError
from s2robot.common.run_folder import locked
from s2robot.training.settings import Machine


def launch(machine: Machine, where: str) -> Fabric:
    """Fabric with its processes started.

    Raises:
        UserError: a device, strategy or precision that is not there.
    """
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
    except (ValueError, RuntimeError, ImportError, TypeError) as error:  # of whatever a strategy asks for
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
    """What a step multiplies matrices in: with `auto`, bfloat16 where what computes multiplies in it."""
    auto = machine.precision == "auto" and not _on_gpu(machine) and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if auto or precision_of(machine).startswith("bf16") else torch.float32


def alone(fabric: Fabric, out: Path) -> AbstractContextManager[None]:
    """Around what works in the folder `out`: makes it, and refuses a second training there (UserError)."""
    return locked(out) if fabric.is_global_zero else nullcontext()


@contextmanager
def together(fabric: Fabric, where: str) -> Iterator[None]:
    """Around what the processes do together: that another one has ended is one line, not the network's words."""
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
            "says in a line of its own why it ended; the same command goes on from the last state"
        ) from error


def check_shares(fabric: Fabric, key: str, found: int, whole: int) -> None:
    """Refuse what the processes cannot share evenly: `whole` pictures or windows a step.

    Raises:
        UserError: names the key, its value and what would do.
    """
    world = fabric.world_size
    if whole % world:
        raise UserError(
            f"{key}: found {found}, that is {whole} a step, expected a multiple of {world} for {world} processes"
        )


def mean_of_all(fabric: Fabric, value: Tensor) -> Tensor:
    """The mean over all processes; the value itself where there is one."""
    if fabric.world_size == 1:
        return value
    total = fabric.all_reduce(value, reduce_op="mean")
    assert isinstance(total, Tensor)
    return total
