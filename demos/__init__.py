"""Demonstrations: the episode store and what records, replays and shows it."""

import s2robot.envs  # noqa: F401 (chooses how MuJoCo draws, before anything imports mujoco)
