"""Small datasets written with each format's own libraries, and helpers that convert and export them."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from s2robot.demos.formats.convert import convert
from s2robot.demos.formats.export import ExportSettings, export
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore
from tests.errors import refuses

FPS, LENGTHS, H, W = 10, (5, 7), 16, 24
TASKS = ("put the cup down", "lift\u2028the cup")
NAMES = ("out", "out.hdf5", "out.zarr")  # datasets of LeRobot, robomimic, diffusion_policy


def written(store: EpisodeStore, path: Path, **settings: object) -> Path:
    """Export a store in the format that the path's suffix selects, as in NAMES."""
    to = {"": "lerobot", ".hdf5": "robomimic"}.get(path.suffix, "diffusion_policy")
    export(store, path, to, ExportSettings(**settings))
    return path


def converted(path: Path, choice: Choice | None = None, name: str = "back.zarr") -> EpisodeStore:
    """Convert a dataset to a store in the same folder."""
    convert(path, path.with_name(name), choice)
    return EpisodeStore.open(path.with_name(name))


def refused(path: Path, *words: str, choice: Choice | None = None) -> str:
    """Return the error, with all `words`, of a conversion that leaves nothing behind."""
    before = sorted(path.parent.iterdir())
    text = str(refuses(".", convert, path, path.with_name("refused.zarr"), choice))
    assert all(word in text for word in words), text
    assert sorted(path.parent.iterdir()) == before
    return text


def psnr(actual: np.ndarray, expected: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.square(actual.astype(float) - expected.astype(float)).mean(), 1e-9))


def numbers(i: int) -> dict[str, np.ndarray]:
    """Return the action and state of episode i."""
    rng = np.random.default_rng(i)
    return {k: rng.normal(size=(LENGTHS[i], n)).astype("f4") for k, n in (("action", 3), ("state", 4))}


def frames(i: int, size: tuple[int, int] = (H, W)) -> np.ndarray:
    """Return smooth, distinct images of episode i.  # uint8 (T, H, W, 3)"""
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    t = np.arange(LENGTHS[i])[:, None, None]
    grey = np.stack([0.3 + 0.05 * t + 0 * x, 0.5 * x + 0.02 * t, 0.2 * i + 0.5 * y + 0 * t], -1)
    return np.clip(grey * 255, 0, 255).round().astype(np.uint8)


def video(path: Path, images: np.ndarray, fps: int = FPS, gop: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1", "g": str(gop)}
        for image in images:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())


def features(kind: str = "video") -> dict:
    sides, numbers = ["height", "width", "channels"], dict.fromkeys(("next.reward", "timestamp"), "float32")
    numbers |= dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
    return {
        "observation.state": {"dtype": "float32", "shape": [4], "names": [["a", "b", "c", "d"]]},
        "action": {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "z"]}},
        "observation.images.top": {"dtype": kind, "shape": [H, W, 3], "names": sides},
        **{name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in numbers.items()},
    }


def table(i: int, first: int, **changes: list) -> pa.Table:
    """Return the rows of episode i; `first` is its first row in the dataset."""
    n, data = LENGTHS[i], numbers(i)
    columns = {
        "observation.state": pa.array(data["state"].tolist(), pa.list_(pa.float32(), 4)),
        "action": pa.array(data["action"].tolist(), pa.list_(pa.float32(), 3)),
        "next.reward": pa.array(np.arange(n, dtype="f4")), "timestamp": pa.array((np.arange(n) / FPS).astype("f4")),
        "frame_index": pa.array(np.arange(n)), "episode_index": pa.array(np.full(n, i)),
        "index": pa.array(first + np.arange(n)), "task_index": pa.array(np.full(n, i)),
    }  # fmt: skip
    return pa.table({**columns, **{k: pa.array(v, columns[k].type) for k, v in changes.items()}})


def describe(path: Path, version: str, data: str, videos: str) -> None:
    """Create the folders and meta/info.json; `data` and `videos` are the paths of an episode's files."""
    for folder in ("meta/episodes/chunk-000" if version == "v3.0" else "meta", "data/chunk-000"):
        (path / folder).mkdir(parents=True)
    about = {
        "codebase_version": version, "robot_type": "koch", "fps": FPS, "features": features(), "total_episodes": 2,
        "total_frames": sum(LENGTHS), "total_tasks": 2, "chunks_size": 1000, "splits": {"train": "0:2"},
        "data_path": f"data/{data}.parquet", "video_path": f"videos/{videos}.mp4",
    }  # fmt: skip
    (path / "meta/info.json").write_text(json.dumps(about))


def lerobot_v21(path: Path) -> Path:
    name, chunk = "episode_{episode_index:06d}", "chunk-{episode_chunk:03d}"
    describe(path, "v2.1", f"{chunk}/{name}", f"{chunk}/{{video_key}}/{name}")
    rows = [{"episode_index": i, "tasks": [TASKS[i]], "length": n} for i, n in enumerate(LENGTHS)]
    dumps = partial(json.dumps, ensure_ascii=False)
    (path / "meta/episodes.jsonl").write_text("\n".join(map(dumps, rows)) + "\n")
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    (path / "meta/tasks.jsonl").write_text("\n".join(map(dumps, tasks)) + "\n")
    for i in range(2):
        pq.write_table(table(i, i * LENGTHS[0]), path / f"data/chunk-000/episode_{i:06d}.parquet")
        video(path / f"videos/chunk-000/observation.images.top/episode_{i:06d}.mp4", frames(i))
    return path


def lerobot_v30(path: Path) -> Path:
    """LeRobot v3.0: both episodes in one parquet file and one video."""
    name = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    describe(path, "v3.0", name, f"{{video_key}}/{name}")
    both = pa.concat_tables([table(i, i * LENGTHS[0]) for i in range(2)])
    pq.write_table(both, path / "data/chunk-000/file-000.parquet")
    key, ends, texts = "observation.images.top", np.cumsum(LENGTHS), pa.list_(pa.string_view())
    rows = [
        {
            "episode_index": i, "tasks": pa.scalar([TASKS[i]], texts), "data/chunk_index": 0, "data/file_index": 0,
            "dataset_from_index": int(ends[i]) - n, "dataset_to_index": int(ends[i]),
            "length": n, f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": 0,
            f"videos/{key}/from_timestamp": (int(ends[i]) - n) / FPS,
            f"videos/{key}/to_timestamp": int(ends[i]) / FPS, "stats/action/min": [0.0] * 3,
        }
        for i, n in enumerate(LENGTHS)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path / "meta/episodes/chunk-000/file-000.parquet")
    video(path / f"videos/{key}/chunk-000/file-000.mp4", np.concatenate([frames(0), frames(1)]))
    return path


OSC = {"type": "OSC_POSE", "control_delta": True, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]}
ARGS = {
    "env_name": "Lift", "env_version": "1.4.1", "type": 1,
    "env_kwargs": {"robots": ["Panda"], "control_freq": 20, "controller_configs": OSC},
}  # fmt: skip


def robomimic(path: Path) -> Path:
    """Write demos 2 and 10, whose pixels equal the demo number; demo 2 is turned by 90 degrees about z."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(ARGS)
        for number, steps in ((10, 3), (2, 4)):
            demo = file["data"].create_group(f"demo_{number}")
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            half = np.sqrt(0.5) if number == 2 else 0.0
            demo["obs/robot0_eef_quat"] = np.tile([0, 0, half, np.sqrt(1 - half**2)], (steps, 1))
            demo["obs/robot0_eef_pos"] = rng.normal(size=(steps, 3))
            demo["obs/robot0_gripper_qpos"] = rng.normal(size=(steps, 2))
            demo["obs/agentview_image"] = np.full((steps, 6, 8, 3), number, np.uint8)
        file["mask/train"] = np.array([b"demo_10"])
    return path


CAMERAS = {"hand": (H, W), "left.up": (20, 18)}  # different sizes, and a name with a dot
PARTS = {
    "action_parts": [
        {"name": "joints", "size": 2, "kind": "delta", "names": ["elbow", "wrist"]},
        {"name": "gripper", "size": 1, "kind": "binary", "low": [0.0], "high": [1.0]},
    ],
    "proprio_parts": [{"name": "pose", "size": 4, "kind": "absolute"}],
}


def episode(i: int, cameras: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """Return the arrays of episode i of an episode store."""
    data, n = numbers(i), LENGTHS[i]
    data["action"][:, 2] = np.arange(n) % 2
    images = {f"images_{name}": frames(i, size) for name, size in cameras.items()}
    extra = {"force/left": np.arange(n, dtype="f8") / 7, "imitate": np.arange(n, dtype="u1") % 2}
    extra |= {"grid": np.arange(n * 6.0).reshape(n, 2, 3).astype("f4"), "width": np.ones((n, 1), "f4")}
    return {"action": data["action"], "proprio": data["state"], **extra, **images}


def store(path: Path, **about: object) -> EpisodeStore:
    """Create a store of two episodes: parts, cameras of two `sizes`, extra arrays, a task and `values` each."""
    cameras, values = dict(about.pop("sizes", CAMERAS)), about.pop("values", ({}, {}))  # type: ignore[call-overload]
    attributes = {
        "robot": "xarm7", "joint_names": ["elbow", "wrist"], "rate_hz": FPS, "seed": 3, "cameras": list(cameras),
        "camera_geometry": {n: {"size": list(size)} for n, size in cameras.items()}, "action_frame": "parts",
        "env_version": "mine", "env_config": {}, "kind": "images", "tasks": list(TASKS), **PARTS, **about,
    }  # fmt: skip
    with EpisodeStore.create(path, attributes) as made:
        for i in range(len(LENGTHS)):
            made.append(episode(i, cameras), {"task": 1 - i, "seed": 7 + i, "success": bool(i), **values[i]})
    return made


def edited(file: Path, **about: object) -> None:
    """Change keys of a JSON object in a file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | about))


def changed(file: Path, change: Callable[[h5py.File], object]) -> Path:
    """Return a changed copy of an HDF5 file; the file itself may still be open after a caught error."""
    copy = file.with_name(f"{len([*file.parent.iterdir()])}.hdf5")
    shutil.copy(file, copy)
    with h5py.File(copy, "a") as opened:
        change(opened)
    return copy


def zipped(path: Path) -> Path:
    """Zip a folder into the same parent folder."""
    return Path(shutil.make_archive(str(path), "zip", path))


def overwrite(path: Path, key: str, values: np.ndarray) -> None:
    """Overwrite an array of a store directly in zarr."""
    zarr.open_array(str(path / "data" / key), mode="r+")[:] = values
