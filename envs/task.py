"""The interface of a task: a world in which a policy acts, for evaluation, recording and reports.

    class Push(Task):                              # your own task; docs/tasks.md has a complete one
        def begin(self, rng, options): ...         # place everything for a new episode
        def apply(self, action): ...               # move for one control period
        proprio = property(lambda self: ...)       # float32 (P,)
        is_success = property(lambda self: ...)
        def render_cameras(self): ...              # {camera: uint8 (H, W, 3)}

A task is a gymnasium environment: ``check_env`` passes. Its settings (task_settings.py) need no simulator.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import gymnasium
import numpy as np

from s2robot.core.parts import default_parts, plain, read_parts
from s2robot.envs.errors import EnvError, expect
from s2robot.envs.frames import sizes_of
from s2robot.envs.task_settings import CommonSettings, Group, TaskSettings

__all__ = ["CommonSettings", "Expert", "Group", "Task", "TaskSettings", "next_action"]


class Expert(Protocol):
    """A scripted expert in one world; :meth:`Task.expert` creates it after a reset.

    Optional members: ``push``, the name of a perturbation if the last action was one (never imitated; :meth:`act` may return a
    flag with the action instead). DAgger needs three more: ``ask(steps, memory=None)``, its next actions without perturbations
    (steps, A); ``remember()``, the memory for `ask`; ``take_over(actions)``, to continue after the actions of a policy (T, A).
    """

    failed: bool  # it has given up

    def act(self) -> np.ndarray:
        """Return the next action.  # float32 (A,)"""


def next_action(expert: Any) -> tuple[np.ndarray, bool]:
    """Return an expert's next action, and whether it is a push."""
    action = expert.act()
    return action if isinstance(action, tuple) else (action, bool(getattr(expert, "push", "")))


def next_actions(env: "Task", expert: Any, steps: int) -> np.ndarray:
    """Return an expert's next actions; all but the last are executed.  # float32 (steps, A)"""
    actions = [next_action(expert)[0]]
    while len(actions) < steps:
        env.step_physics(actions[-1])
        actions.append(next_action(expert)[0])
    return np.stack(actions)


class PredictingExpert:
    """An expert that can predict its next actions; a subclass defines ``calm``, which ends perturbations."""

    world: "Task"
    memory: ClassVar[tuple[str, ...]]  # attributes that determine its actions besides the world's state
    calm: Any

    def ask(self, steps: int, memory: dict[str, Any] | None = None) -> np.ndarray:
        """Return its next actions without perturbations, from a memory of :meth:`remember` or now, and change nothing.
        # float32 (steps, A)"""
        present = self.remember()
        with self.world.rehearsal():
            vars(self).update(memory or present)
            self.calm()
            actions = next_actions(self.world, self, steps)
        vars(self).update(present)
        return actions

    def remember(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.memory}


class Task(gymnasium.Env):
    """A world with images and proprioception, in which the seed determines an episode.

    Observation: ``{"images": {camera: uint8 (H, W, 3) RGB upright}, "proprio": float32 (P,)}``, without images if ``draw`` is
    false; action: float32 (A,); ``info``: the properties ``is_success``, ``stage``, ``progress`` and ``layout``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    Settings: ClassVar[type] = CommonSettings
    settings: Any
    joint_names: tuple[str, ...] = ()
    action_parts: Sequence[dict] = ()  # by default the joints (deltas) and the gripper of an arm,
    proprio_parts: Sequence[dict] = ()  # and its joints and its gripper's opening
    layout: Mapping[str, float] = MappingProxyType({})  # the episode's initial layout, by name
    instruction: str | None = None  # the episode's task in words, in a world with several tasks
    render_mode: str | None = None
    draw: bool = True
    _steps = 0

    @abstractmethod
    def begin(self, rng: np.random.Generator, options: Mapping[str, Any]) -> None:
        """Place everything for a new episode; only ``rng`` and ``options`` determine where."""

    @abstractmethod
    def apply(self, action: np.ndarray) -> None:
        """Move for one control period.  # float64 (A,)"""

    @abstractmethod
    def render_cameras(self) -> dict[str, np.ndarray]:
        """Return one frame per camera of the current state.  # {camera: uint8 (H, W, 3)}"""

    @property
    @abstractmethod
    def proprio(self) -> np.ndarray: ...  # float32 (P,)

    @property
    @abstractmethod
    def is_success(self) -> bool: ...

    @property
    def stage(self) -> str:
        """The furthest stage reached in this episode."""
        return self.settings.stages[-1 if self.is_success else 0]

    @property
    def settled(self) -> np.ndarray:
        """The physical state at an episode's start, as far as the task exposes it: by default its proprioception."""
        return self.proprio

    @property
    def progress(self) -> float:
        """Progress, larger when closer to success; NaN if it is not measured."""
        return float("nan")

    @property
    def grip_points(self) -> dict[str, np.ndarray]:
        """Where each camera sees the hand: x to the right and y downwards in 0..1; {} if unknown."""
        return {}

    @property
    def remaining(self) -> float:
        """Remaining distance, in m if measured, else minus :attr:`progress`; a policy stalls if it stops decreasing."""
        return -self.progress

    @property
    def grasp_missed(self) -> bool:
        """Whether the last action visibly failed, such as a gripper that closed on nothing."""
        return False

    def expert(self, rng: np.random.Generator, settings: Any = None) -> Expert:
        """Return a scripted expert for the episode that has just started; EnvError if the task has none."""
        hint = "to record from; use existing demos (demos.path=<dataset>)"
        raise EnvError(f"task {self.settings.task}: expected a scripted expert {hint}, got none")

    # Recordings of states need these, and render frames later; without them, demos store the frames.

    def demo_fields(self) -> dict[str, np.ndarray]:
        """Return a step's arrays that a demo stores besides state, proprioception and action; always the same names."""
        return {}

    def get_state(self) -> np.ndarray:
        """Return everything that determines the future and the images.  # float64 (S,)"""
        raise NotImplementedError

    def set_state(self, state: np.ndarray, find_contacts: bool = True) -> None:
        """Restore a state of :meth:`get_state`; ``find_contacts=False`` for a state reached by the last step."""
        raise NotImplementedError

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Undo everything done in this context; exact if a state contains everything that determines the future."""
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

    @property
    def camera_sizes(self) -> dict[str, tuple[int, int]]:
        """(H, W) of each camera's frames, in the policy's order."""
        return sizes_of(self.settings.image_size, self.settings.cameras)

    def native_sizes(self) -> dict[str, tuple[int, int]]:
        """Return (H, W) of each camera whose images have a fixed shape and can only be cropped and scaled."""
        return {}

    def spaces(self, action_low, action_high, proprio_size: int) -> None:
        """Declare the spaces: actions within limits (A,), frames, proprioception; UserError if the parts do not match."""
        spaces = gymnasium.spaces
        images: Any = {n: spaces.Box(0, 255, (*size, 3), np.uint8) for n, size in self.camera_sizes.items()}
        proprio = spaces.Box(-np.inf, np.inf, (proprio_size,), np.float32)
        self.observation_space = spaces.Dict({"images": spaces.Dict(images), "proprio": proprio})
        low, high = (np.asarray(end, np.float32) for end in (action_low, action_high))
        self.action_space = spaces.Box(low, high)
        for key, size in (("action_parts", len(action_low)), ("proprio_parts", proprio_size)):
            if not getattr(self, key):
                setattr(self, key, self._default_parts(key))
            read_parts(getattr(self, key), f"task {self.settings.task}: {key}", size)

    def _default_parts(self, key: str) -> list[dict]:
        return plain(default_parts(key, len(self.joint_names)))

    def reset(self, *, seed=None, options=None):
        """Start an episode, which only the seed and the options determine."""
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
        """Step without an observation, as a rollout does between two decisions of a policy."""
        action, shape = np.asarray(action, float), self.action_space.shape
        valid = action.shape == shape and np.isfinite(action).all()
        expect(valid, "action", f"finite numbers of shape {shape}", action.tolist())
        self.apply(action)
        self._steps += 1

    def observe(self) -> dict[str, Any]:
        return {"images": self.frames() if self.draw else {}, "proprio": self.proprio}

    def frames(self) -> dict[str, np.ndarray]:
        """Return :meth:`render_cameras`; EnvError for a frame that is missing, or has a wrong type or size."""
        frames = self.render_cameras()
        for name, size in self.camera_sizes.items() if frames else ():
            frame = frames.get(name)
            got = "none" if frame is None else f"{frame.dtype} {frame.shape}"
            key, expected = f"task {self.settings.task}: render_cameras: '{name}'", f"uint8 {(*size, 3)}"
            expect(got == expected, key, expected, got)
        return frames

    def info(self) -> dict[str, Any]:
        facts = {"is_success": self.is_success, "stage": self.stage, "progress": self.progress}
        points = self.grip_points
        return facts | {"layout": dict(self.layout)} | ({"grip_points": points} if points else {})

    def render(self):
        """Return the cameras side by side, padded with black below.  # uint8 (max H, sum of W, 3)"""
        if self.render_mode != "rgb_array":
            return None
        frames = list(self.render_cameras().values())
        height = max(map(len, frames))
        return np.concatenate([np.pad(f, ((0, height - len(f)), (0, 0), (0, 0))) for f in frames], axis=1)

    def record_fields(self, layout: Mapping[str, float], progress: float) -> tuple[dict, dict]:
        """Return a record's fields for the layout (of the first ``info``) and the best progress; JSON types."""
        best = None if np.isnan(progress) else round(float(progress), 5)
        return {"layout": {k: round(float(v), 5) for k, v in layout.items()}}, {"progress": best}

    def camera_geometry(self) -> dict[str, dict[str, Any]]:
        """Return camera -> ``size`` [H, W], and ``fovy``, ``position`` ... if known."""
        return {name: {"size": list(size)} for name, size in self.camera_sizes.items()}

    def describe(self) -> dict[str, Any]:
        """Return this world's attributes for datasets and checkpoints; JSON types. Default parts are left out."""
        s = self.settings
        about = {
            **{"robot": s.robot, "joint_names": list(self.joint_names), "rate_hz": s.rate_hz},
            "cameras": list(s.cameras),
            "camera_geometry": self.camera_geometry(),
            "action_frame": s.action_frame,
            "env_version": s.version,
            "env_config": {k: list(v) if isinstance(v, tuple) else v for k, v in s.model_dump().items()},
        }
        parts = {"action_parts": self.action_parts, "proprio_parts": self.proprio_parts}
        return about | {key: value for key, value in parts.items() if value != self._default_parts(key)}
