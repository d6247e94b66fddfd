"""s2robot: S2 features of frozen MVP encoders for robot policies that learn from demonstrations.

from s2robot import S2            # S2 on any vision model, see s2robot.s2.module
from s2robot import load_policy   # load a checkpoint for acting, see s2robot.loading
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2robot.loading import load_policy as load_policy
    from s2robot.s2.module import S2 as S2

__version__ = "0.2.0.dev0"
__all__ = ["S2", "__version__", "load_policy"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Both import torch; loading them lazily keeps `import s2robot` (and `s2robot --version`) fast.
    if name == "S2":
        from s2robot.s2.module import S2

        return S2
    if name == "load_policy":
        from s2robot.loading import load_policy

        return load_policy
    raise AttributeError(f"module 's2robot' has no attribute {name!r}")
