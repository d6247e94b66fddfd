"""Demonstrations: the episode store and what records, replays and shows it."""

import envs  # noqa: F401 (chooses how MuJoCo draws, before anything imports mujoco)
