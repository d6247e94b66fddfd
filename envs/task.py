"""The interface of a task: a world that a policy acts in, for evaluation, recording and reports.

    class Push(Task):                              # your own task; docs/tasks.md has a complete one
        def begin(self, rng, options): ...         # put everything in its place
        def apply(self, action): ...               # move for one control period
        proprio = property(lambda self: ...)       # float32 (P,)
        is_success = property(lambda self: ...)
        def render_cameras(self): ...              # {camera: uint8 (H, W, 3)}

A task is a gymnasium environment: ``check_env`` passes. Its settings (task_settings.py) hold the facts that need no simulator.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import gymnasium
import numpy as np

from s2robot.core.parts import read_parts
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import image_space, side_by_side, sizes_of
from s2robot.envs.task_settings import CommonSettings, Group, TaskSettings

__all__ = [
    "CommonSettings",
    "Expert",
    "Group",
    "Task",
    "TaskSettings",
    "next_action",
]


class Expert(Protocol):
    """A scripted expert in one world; :meth:`Task.expert` makes it after a reset.

    Optional members: ``push``, the name of a perturbation if the last action was one (never imitated; :meth:`act` may return
    a flag beside the action instead). DAgger needs three more: ``ask(steps, memory=None)``, its next actions without
    perturbations (steps, A); ``remember()``, the memory that `ask` takes; ``take_over(actions)``, to continue after the
    actions of a policy (T, A).
    """

    failed: bool  # it has given up

    def act(self) -> np.ndarray:
        """The next action.  # float32 (A,)"""


def next_action(expert: Any) -> tuple[np.ndarray, bool]:
    """An expert's next action, and whether it is a push."""
    found = expert.act()
    return found if isinstance(found, tuple) else (found, bool(getattr(expert, "push", "")))


def next_actions(env: "Task", expert: Any, steps: int) -> np.ndarray:
    """An expert's next actions; all but the last are executed.  # float32 (steps, A)"""
    actions = [next_action(expert)[0]]
    while len(actions) < steps:
        env.step_physics(actions[-1])
        actions.append(next_action(expert)[0])
    return np.stack(actions)


class AskedExpert:
    """An expert whose next actions can be asked for; a subclass defines ``calm``, which ends perturbations."""

    world: "Task"
    holder: Any  # of the attributes `memory`
    memory: ClassVar[tuple[str, ...]]  # what decides its actions besides the world's state
    calm: Any

    def ask(self, steps: int, memory: dict[str, Any] | None = None) -> np.ndarray:
        """Its next actions without perturbations; world and expert stay as they were.  # float32 (steps, A)

        memory: of :meth:`remember`, to ask as of then; None: the present one.
        """
        present = self.remember()
        with self.world.rehearsal():
            self.recall(memory or present)
            self.calm()
            actions = next_actions(self.world, self, steps)
        self.recall(present)
        return actions

    def remember(self) -> dict[str, Any]:
        """Its memory of the episode, for `recall`."""
        return {name: getattr(self.holder, name) for name in self.memory}

    def recall(self, memory: dict[str, Any]) -> None:
        """Go back to what `remember` returned."""
        vars(self.holder).update(memory)


class Task(gymnasium.Env):
    """A world with images and proprioception, in which an episode is decided by its seed.

    Observation: ``{"images": {camera: uint8 (H, W, 3) RGB upright}, "proprio": float32 (P,)}``; action: float32 (A,).
    ``info``: ``is_success``, ``stage`` (the furthest reached), ``progress`` (larger is nearer to success, or NaN if
    it is not measured), ``layout`` (numbers by name: where the episode began).

    With ``draw=False`` observations hold no images (:meth:`render_cameras` still draws).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    Settings: ClassVar[type] = CommonSettings
    settings: Any
    joint_names: tuple[str, ...] = ()
    action_parts: list[dict] | None = None
    proprio_parts: list[dict] | None = None
    render_mode: str | None = None
    draw: bool = True
    _steps = 0

    # ---------------------------------------------------------------- what a task defines

    @abstractmethod
    def begin(self, rng: np.random.Generator, options: Mapping[str, Any]) -> None:
        """Put everything in its place for a new episode; ``rng`` alone decides where."""

    @abstractmethod
    def apply(self, action: np.ndarray) -> None:
        """Move for one control period.  # float64 (A,)"""

    @abstractmethod
    def render_cameras(self) -> dict[str, np.ndarray]:
        """One frame per camera of the present state.  # {camera: uint8 (H, W, 3)}"""

    @property
    @abstractmethod
    def proprio(self) -> np.ndarray:
        """The proprioception.  # float32 (P,)"""

    @property
    @abstractmethod
    def is_success(self) -> bool:
        """Whether the episode has succeeded."""

    @property
    def stage(self) -> str:
        """The furthest stage reached in this episode."""
        stages = self.settings.stages
        return stages[-1] if self.is_success else stages[0]

    @property
    def progress(self) -> float:
        """Larger is nearer to success; NaN if it is not measured."""
        return float("nan")

    @property
    def layout(self) -> dict[str, float]:
        """Where the episode began, by name."""
        return {}

    @property
    def grip_points(self) -> dict[str, np.ndarray]:
        """Where each camera sees the hand: x to the right and y downwards in 0..1; {} if unknown."""
        return {}

    @property
    def remaining(self) -> float:
        """The remaining distance to success, in units of :attr:`progress`; a policy has stalled when it stops falling."""
        return -self.progress

    @property
    def grasp_missed(self) -> bool:
        """Whether the last action visibly failed, such as a gripper that closed on nothing."""
        return False

    def expert(self, rng: np.random.Generator, settings: Any = None) -> Expert:
        """A scripted expert for the episode that has just begun.

        Raises:
            EnvError: the task has none.
        """
        raise EnvError(
            f"task {self.settings.task}: it has no scripted expert, so there is nothing to record from; demos come "
            "from elsewhere (demos.path=<dataset>)"
        )

    # Recordings of states need these, and frames are drawn later; without them, demos hold the frames.

    def demo_fields(self) -> dict[str, np.ndarray]:
        """Arrays that a demo stores of each step beside state, proprioception and action; always the same names."""
        return {}

    def get_state(self) -> np.ndarray:
        """All that decides the future and the images.  # float64 (S,)"""
        raise NotImplementedError

    def set_state(self, state: np.ndarray, find_contacts: bool = True) -> None:
        """Go to a state of :meth:`get_state`; ``find_contacts=False`` for a state that the last step led to."""
        raise NotImplementedError

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """What happens in this context leaves no trace; right where a state holds all that decides the future."""
        state, steps = self.get_state(), self._steps
        try:
            yield
        finally:
            self.set_state(state)
            self._steps = steps

    @property
    def has_state(self) -> bool:
        """Whether the task can return to a state."""
        return type(self).set_state is not Task.set_state

    # ---------------------------------------------------------------- what all tasks share

    @property
    def camera_sizes(self) -> dict[str, tuple[int, int]]:
        """(H, W) of each camera's frames, in the policy's order."""
        images: Any = self.observation_space["images"]  # type: ignore[index]
        return {name: images[name].shape[:2] for name in self.settings.cameras}

    def spaces(self, action_low, action_high, proprio_size: int) -> None:
        """Declare the spaces: actions within limits (A,), frames of the settings' sizes, proprioception.

        Raises:
            UserError: parts that are none, or do not add up to them.
        """
        sizes = sizes_of(self.settings.image_size, self.settings.cameras)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "images": image_space(sizes),
                "proprio": gymnasium.spaces.Box(-np.inf, np.inf, (proprio_size,), np.float32),
            }
        )
        self.action_space = gymnasium.spaces.Box(
            np.asarray(action_low, np.float32), np.asarray(action_high, np.float32)
        )
        sizes_of_parts = {"action_parts": len(action_low), "proprio_parts": proprio_size}
        for key, size in sizes_of_parts.items():
            if (parts := getattr(self, key)) is not None:
                read_parts(parts, f"task {self.settings.task}: {key}", size)

    def reset(self, *, seed=None, options=None):
        """Start an episode; the seed alone decides it."""
        super().reset(seed=seed)
        self._steps = 0
        self.begin(self.np_random, options or {})
        return self.observe(), self.info()

    def step(self, action):
        """Move for one control period; see the class for the action's meaning."""
        self.step_physics(action)
        info = self.info()
        success = info["is_success"]
        truncated = not success and self._steps >= self.settings.max_steps
        return self.observe(), float(success), success, truncated, info

    def step_physics(self, action) -> None:
        """:meth:`step` without an observation: what a rollout needs between two decisions of a policy."""
        action, size = np.asarray(action, float), self.action_space.shape[0]  # type: ignore[index]
        if action.shape != (size,):
            raise EnvError(f"action: found shape {action.shape}, expected {size} finite numbers")
        if not np.isfinite(action).all():
            raise EnvError(f"action: found {action.tolist()}, expected {size} finite numbers")
        self.apply(action)
        self._steps += 1

    def observe(self) -> dict[str, Any]:
        """The present observation."""
        return {"images": self.frames() if self.draw else {}, "proprio": self.proprio}

    def frames(self) -> dict[str, np.ndarray]:
        """:meth:`render_cameras`, checked.

        Raises:
            EnvError: a camera is missing, or its frame is of another type or size than the settings say.
        """
        frames = self.render_cameras()
        spaces: Any = self.observation_space["images"] if frames else {}  # type: ignore[index]
        for name, box in spaces.items():
            found = frames.get(name)
            if found is None or found.dtype != np.uint8 or found.shape != box.shape:
                got = "none" if found is None else f"{found.dtype} {found.shape}"
                raise EnvError(
                    f"task {self.settings.task}: render_cameras: '{name}': expected uint8 {box.shape}, got {got}"
                )
        return frames

    def info(self) -> dict[str, Any]:
        """The facts about the episode so far."""
        known = {
            "is_success": self.is_success,
            "stage": self.stage,
            "progress": self.progress,
            "layout": dict(self.layout),
        }
        return known | ({"grip_points": points} if (points := self.grip_points) else {})

    def render(self):
        """The cameras side by side.  # uint8 (max H, sum of W, 3)"""
        if self.render_mode == "rgb_array":
            return side_by_side(self.render_cameras().values())
        return None

    def record_fields(self, layout: Mapping[str, float], progress: float) -> tuple[dict, dict]:
        """The fields of an episode's record for its start and its best progress; JSON types.

        Args:
            layout: of the first ``info``.
            progress: the largest of the episode.
        """
        best = None if np.isnan(progress) else round(float(progress), 5)
        return {"layout": {k: round(float(v), 5) for k, v in layout.items()}}, {"progress": best}

    def camera_geometry(self) -> dict[str, dict[str, Any]]:
        """Camera -> ``size`` [H, W], and ``fovy``, ``position`` ... if known."""
        return {name: {"size": list(size)} for name, size in self.camera_sizes.items()}

    def describe(self) -> dict[str, Any]:
        """The attributes that datasets and checkpoints store of this world; JSON types."""
        s = self.settings
        values = s.model_dump()
        about = {
            "robot": s.robot,
            "joint_names": list(self.joint_names),
            "rate_hz": s.rate_hz,
            "cameras": list(s.cameras),
            "camera_geometry": self.camera_geometry(),
            "action_frame": s.action_frame,
            "env_version": s.version,
            "env_config": {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()},
        }
        parts = {"action_parts": self.action_parts, "proprio_parts": self.proprio_parts}
        return about | {name: value for name, value in parts.items() if value is not None}
