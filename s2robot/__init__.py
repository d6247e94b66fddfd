"""s2robot: S2 features of frozen MVP encoders for robot policies that learn from demonstrations.

from s2robot import S2  # S2 on any vision model, see s2robot.s2.module
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2robot.s2.module import S2 as S2

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # S2 brings torch with it, which `import s2robot` alone (the command line's --version) should not pay for.
    if name == "S2":
        from s2robot.s2.module import S2

        return S2
    raise AttributeError(f"module 's2robot' has no attribute {name!r}")
