"""MVP's published checkpoints by name: `s2robot.mvp.load("vitb-mae-egosoup")`. It lives in `backbones`."""

from s2robot.backbones.mvp import fetch, load

__all__ = ["fetch", "load"]
