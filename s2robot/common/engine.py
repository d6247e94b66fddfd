"""What runs side by side runs on the engine that a config chooses: `engine=local`, `engine=ray`.

with engine_of(cfg): ...        # pools of `s2robot.envs.workers` that are made in here
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s2robot.common.errors import UserError
from s2robot.common.extras import require
from s2robot.common.run_folder import is_first
from s2robot.envs.processes import prepare
from s2robot.envs.workers import Local, running_on

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class LocalSettings:
    """configs/engine/local.yaml says what each is."""

    name: str = "local"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"engine.workers: found {self.workers}, expected 1 or more")


@contextmanager
def engine_of(cfg: "DictConfig", soon: bool = False) -> Iterator[None]:
    """The engine of a verb's config; none is chosen where the verb has none. ``soon``: it will be used for certain.

    Raises:
        UserError: a wrong setting, or an engine that is not installed.
    """
    from s2robot.common.settings import read

    if "engine" not in cfg:
        yield
    elif cfg.engine.name == "local":
        if soon and is_first():  # no other process of several has workers
            prepare()
        with running_on(Local(read(LocalSettings, cfg.engine, "engine").workers)):
            yield
    else:
        require("ray", "ray")
        from s2robot.common.on_ray import Ray, RaySettings

        with closing(Ray(read(RaySettings, cfg.engine, "engine"))) as engine, running_on(engine):
            yield
