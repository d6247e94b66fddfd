"""Choose where a verb's workers run, from its config: `engine=local`, `engine=ray`."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from s2robot.common.extras import require
from s2robot.common.run_folder import is_first
from s2robot.core.processes import prepare
from s2robot.core.settings import read
from s2robot.core.workers import Local, LocalSettings, running_on

if TYPE_CHECKING:
    from omegaconf import DictConfig


@contextmanager
def engine_of(cfg: "DictConfig", soon: bool = False) -> Iterator[None]:
    """Run the pools that are made inside on the config's engine, if it has one. ``soon``: workers will be needed.

    Raises:
        UserError: a wrong setting, or an engine that is not installed.
    """
    if "engine" not in cfg:
        yield
    elif cfg.engine.name == "local":
        settings = read(LocalSettings, cfg.engine)
        if soon and is_first():  # the other processes of a distributed run have no workers
            prepare()
        with running_on(Local(settings.workers)):
            yield
    else:
        require("ray", "ray")
        from s2robot.core.ray import Ray, RaySettings

        with closing(Ray(read(RaySettings, cfg.engine))) as engine, running_on(engine):
            yield
