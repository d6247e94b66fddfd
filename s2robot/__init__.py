"""s2robot: robot policies that learn from demonstrations on S2 features of frozen encoders.

from s2robot import S2            # S2 on any vision model, see s2robot.s2.module
from s2robot import load_policy   # load a checkpoint for acting, see s2robot.loading
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2robot.loading import load_policy as load_policy
    from s2robot.s2.module import S2 as S2

__version__ = "0.2.0.dev0"
_MODULE_OF = {"S2": "s2robot.s2.module", "load_policy": "s2robot.loading"}
__all__ = ["__version__", *_MODULE_OF]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Both import torch; loading them lazily keeps `import s2robot` (and `s2robot --version`) fast.
    if name not in _MODULE_OF:
        raise AttributeError(f"module 's2robot' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
