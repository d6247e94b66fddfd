"""What the vendor's SDK of the xArm says, into a file instead of onto the screen.

    log_to("run/xarm_sdk.log")      # once in each process that makes an XArmDriver

The SDK (1.18.4) writes to standard output in three ways: two loggers with handlers of their own, bare `print`s, and a
line while it is imported. Its threads do so at any moment, in the middle of a panel that is being drawn. Standard output
itself cannot be turned elsewhere for that: the panel and other threads write to it. So its loggers get another handler,
and each of its modules a `print` of its own.
"""

import builtins
import io
import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.sdk import import_sdk

LOG_FILE = "xarm_sdk.log"  # in a run's folder
_FORMAT = "%(asctime)s %(processName)s %(levelname)s %(message)s"  # the supervisor is a process of its own

_log = logging.getLogger("s2robot.envs.real.xarm_sdk")
_log.propagate = False
_log.setLevel(logging.INFO)


class _Forward(logging.Handler):
    """A record of the SDK's into our log."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.log(record.levelno, "%s", record.getMessage())


class _Lines(io.TextIOBase):
    """Text, a line a record; the SDK's handlers keep it as their standard output where it was imported under it."""

    def write(self, text: str) -> int:
        for line in filter(None, map(str.strip, text.splitlines())):
            _log.info("%s", line)
        return len(text)


def _print(*values: Any, sep: str | None = " ", file: Any = None, **settings: Any) -> None:
    if file is not None:
        builtins.print(*values, sep=sep, file=file, **settings)
    else:
        _Lines().write((" " if sep is None else sep).join(map(str, values)))


def log_to(path: str | Path) -> None:
    """Append what the SDK says from now on to the file `path`; a later call names another one.

    Nothing happens where the SDK is not installed: `XArmDriver.connect` says so.

    Raises:
        OSError: the file cannot be written.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(_FORMAT))
    for old in list(_log.handlers):
        _log.removeHandler(old)
        old.close()
    _log.addHandler(handler)
    try:
        with redirect_stdout(_Lines()):  # for its import only, before anything is drawn
            import_sdk()
    except EnvError:
        return
    sdk = import_sdk("xarm.core.utils.log")
    for logger in (sdk.logger, sdk.origin_logger):
        logger.handlers[:] = [_Forward()]
        logger.propagate = False
    for name, module in list(sys.modules.items()):
        if name.startswith("xarm."):
            vars(module)["print"] = _print
