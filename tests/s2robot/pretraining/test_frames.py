"""Pre-training frames: read from arrays, images, videos and demos, with broken files named; rendered from a seed."""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from s2robot.core.errors import UserError
from s2robot.core.files import cache_dir, shipped_demos
from s2robot.demos.replay import episode_frames
from s2robot.demos.store import EpisodeStore
from s2robot.envs.object_scenes import CLASSES, LABELS, ObjectScene
from s2robot.pretraining import frames as module
from s2robot.pretraining import render
from s2robot.pretraining.frames import FrameBank, read_image
from s2robot.pretraining.render import ObjectsSettings, ScenesSettings, make_objects, make_scenes
from tests.demos.test_store import IMAGES
from tests.errors import refuses
from tests.s2robot.pictures import noise


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))


def ffmpeg(words: str, path: Path, data: bytes | None = None) -> None:
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
    subprocess.run([*program, *words.split(), str(path)], input=data, check=True)


def write_video(path, frames: np.ndarray, codec: str = "-c:v libx264rgb -qp 0") -> None:
    """Write a video, by default in lossless RGB, so that frames can be compared exactly."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    ffmpeg(f"-f rawvideo -pix_fmt rgb24 -s {size} -r 10 -i pipe:0 {codec}", path, frames.tobytes())


def rejects(path, words: str) -> None:
    refuses(words, lambda: list(FrameBank(path)))


def partial_files() -> list[str]:
    return [p.name for p in cache_dir("frames").iterdir() if "part" in p.name]


def test_array_is_mapped_and_described_and_broken_ones_are_named(tmp_path):
    frames, path = noise(3, 8, 10, 3), tmp_path / "frames.npy"
    np.save(path, frames)
    bank = FrameBank(tmp_path)
    assert len(bank) == 3 and isinstance(bank[1], np.memmap) and np.array_equal(bank[-1], frames[2])
    assert np.array_equal(np.stack(list(bank)), frames) and np.array_equal(FrameBank(path)[2], frames[2])
    assert bank.describe() == {"frames": 3, "shape": [8, 10, 3], "made": None}
    (tmp_path / "meta.json").write_text(json.dumps({"seed": 3}))
    assert bank.describe()["made"] == {"seed": 3}
    with pytest.raises(IndexError):
        bank[3]
    for broken in (b"", b"x" * 200, path.read_bytes()[:-1]):
        path.write_bytes(broken)
        rejects(tmp_path, f"{path}: not a readable array")
    for content, words in [
        (np.zeros((2, 8, 8, 3), np.float32), f"{path}: not a readable array: .* got float32"),
        (np.zeros((2, 8, 8), np.uint8), f"{path}: not a readable array: .* got uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), f"{tmp_path}: expected frames.npy, images .* got none"),
        (np.array([{}], dtype=object), f"{path}: not a readable array"),
    ]:
        np.save(path, content)
        rejects(tmp_path, words)
    with pytest.raises(UserError, match="env.image_size: expected one size, got"):
        module._write_array(path, [noise(8, 8, 3), noise(8, 6, 3)], lambda *_: None)


def test_images_of_any_size_are_read_in_path_order(tmp_path):
    images = [noise(*size, 3) for size in ((3, 9), (1, 1), (8, 2), (5, 5))]
    for i, image in enumerate(images):
        folder = tmp_path / f"{i // 2:02d}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02d}.{('png', 'PNG')[i % 2]}")
    bank = FrameBank(tmp_path)
    assert len(bank) == len(images) and all(map(np.array_equal, bank, images))
    described, moved = bank.describe(), tmp_path.rename(tmp_path.with_name("moved"))
    assert described == {**FrameBank(moved).describe(), "frames": len(images), "shape": [3, 9, 3]}
    Image.fromarray(noise(4, 4, 3)).save(moved / "01/03.PNG")
    assert FrameBank(moved).describe() != described


def test_broken_images_are_named_and_16_bit_greys_are_preserved(tmp_path):
    path = tmp_path / "b.png"
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "a.png")
    valid = (tmp_path / "a.png").read_bytes()
    for content in (b"", b"not an image", valid[:2000], valid[:50] + b"\0" * 400 + valid[450:]):
        path.write_bytes(content)
        rejects(tmp_path, f"^{path}: not a readable image: ")
    path.rename(tmp_path / "._a.png")  # as a file manager's note
    (tmp_path / ".Trash-1000").mkdir()
    (tmp_path / ".Trash-1000/b.png").write_bytes(valid)
    assert len(FrameBank(tmp_path)) == 1
    ramp = np.linspace(0, 65535, 8).astype(np.uint16)[None].repeat(8, 0)
    Image.fromarray(ramp).save(path)
    seen = np.asarray(read_image(path, "RGB"))
    assert seen[0, :, 0].tolist() == (ramp[0] // 257).tolist() and (seen == seen[..., :1]).all()


def test_video_frame_by_frame(tmp_path):
    frames = noise(7, 34, 46, 3)
    for path in (tmp_path / "a.mp4", tmp_path / "a.avi"):
        write_video(path, frames)
        bank = FrameBank(path)
        assert np.array_equal(np.stack([bank[i] for i in range(7)]), frames) and len(bank) == 7
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    made = {"videos": 1, "sha256": hashlib.sha256(sha256.encode()).hexdigest(), "every": 1}
    assert bank.describe() == {"frames": 7, "shape": [34, 46, 3], "made": made}  # no paths
    assert np.array_equal(np.stack(list(FrameBank(path, every=3))), frames[::3])


def test_ordinary_video_in_order_and_upright(tmp_path):
    path, source = tmp_path / "a.mp4", np.zeros((20, 48, 64, 3), np.uint8)
    source[:, :, 32:] = 10 * np.arange(20, dtype=np.uint8)[:, None, None, None]
    write_video(path, source, "-c:v libx264 -pix_fmt yuv420p -bf 2")
    decoded = np.stack(list(FrameBank(path)))
    assert decoded.shape == source.shape and np.abs(decoded.astype(int) - source).mean() < 3
    ffmpeg(f"-display_rotation 90 -i {path} -c copy", tmp_path / "turned.mp4")
    assert FrameBank(tmp_path / "turned.mp4")[5].shape == (64, 48, 3)


def test_broken_videos_are_named(tmp_path):
    path, intact = tmp_path / "a.mp4", tmp_path / "whole.mp4"
    ffmpeg("-f lavfi -i testsrc2=size=160x120:rate=10:duration=4 -movflags +faststart", intact)
    content = intact.read_bytes()
    middle = len(content) // 2
    damaged = content[:middle] + b"\x55" * 300 + content[middle + 300 :]
    for broken in (b"", b"not a video", content[: len(content) * 6 // 10], damaged):
        path.write_bytes(broken)
        rejects(path, f"^{path}: not a readable video: ")
    ffmpeg("-f lavfi -i sine -t 1", path)
    rejects(path, f"^{path}: not a readable video: ")
    assert not partial_files() and not list(cache_dir("frames").glob("*.npy"))


def test_videos_are_identified_by_content_and_decoded_by_one_process(tmp_path, monkeypatch):
    """The other process finishes while this one waits for its lock."""
    frames, path = noise(4, 16, 16, 3), tmp_path / "a.mp4"
    write_video(tmp_path / "b.mp4", frames)
    FrameBank(tmp_path / "b.mp4")
    os.rename(tmp_path / "b.mp4", path)
    (file,) = cache_dir("frames").glob("[!.]*.npy")
    file.rename(tmp_path / "whole.npy")
    (cache_dir("frames") / ".0123.part.npy").write_bytes(b"of another video: not ours to remove")
    code = (
        "import os, sys, time; from filelock import FileLock; lock, made, path = sys.argv[1:]\n"
        "with FileLock(lock): print('held', flush=True); time.sleep(0.3); os.rename(made, path)"
    )
    words = [sys.executable, "-c", code, file.with_name(f".{file.stem}.lock"), tmp_path / "whole.npy", file]
    with monkeypatch.context() as patched, subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        patched.setattr(module, "_write_array", None)
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert np.array_equal(np.stack(list(FrameBank(path))), frames)
    assert partial_files() == [".0123.part.npy"]
    write_video(path, noise(3, 16, 16, 3, seed=1))
    assert np.array_equal(FrameBank(path)[2], noise(3, 16, 16, 3, seed=1)[2])


def test_store_of_images(tmp_path):
    """Cameras of two sizes; the frames of a step are consecutive, also when threads read them."""
    images = {"hand": noise(5, 8, 12, 3), "left": noise(5, 6, 6, 3, seed=1)}
    with EpisodeStore.create(tmp_path / "a.zarr", IMAGES | {"cameras": [*images]}) as store:
        for rows in (slice(0, 3), slice(3, 5)):
            arrays = {f"images_{camera}": array[rows] for camera, array in images.items()}
            action = np.zeros((rows.stop - rows.start, 8), np.float32)
            store.append({**arrays, "action": action}, {"seed": rows.start})
    bank = FrameBank(tmp_path / "a.zarr")
    assert len(bank) == 10 and np.array_equal(bank[-1], images["left"][4])
    made = {key: store.attrs[key] for key in ("robot", "kind", "cameras", "env_version")}
    made["dataset"] = EpisodeStore.open(tmp_path / "a.zarr").fingerprint
    assert bank.describe() == {"frames": 10, "shape": [8, 12, 3], "made": made}
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(bank.__getitem__, [i % 10 for i in range(40)]))
    expected = [frame for step in zip(*images.values(), strict=True) for frame in step]
    assert all(map(np.array_equal, threaded, expected * 4))


def test_store_of_states_is_rendered_once(tmp_path, monkeypatch):
    shipped, path = EpisodeStore.open(shipped_demos("xarm7_cube")), tmp_path / "a.zarr"
    attributes = shipped.attrs | {"cameras": ["hand", "right"]}
    attributes["env_config"]["image_size"] = 32
    with EpisodeStore.create(path, attributes) as store:
        for i, length in enumerate((3, 2)):
            store.append({key: array[:length] for key, array in shipped.episode(i).items()}, {"seed": i})
    bank = FrameBank(path)
    assert len(bank) == 10 and bank.describe()["made"]["kind"] == "states"
    rendered = [episode_frames(path, i, ("hand", "right"), 32) for i in (0, 1)]
    expected = np.concatenate([np.stack(seen, 1) for seen in rendered]).reshape(10, 32, 32, 3)
    assert np.array_equal(np.stack(list(bank)), expected) and len(np.unique(expected)) > 20
    monkeypatch.setattr("s2robot.demos.replay.render_episodes", None)  # a second bank renders nothing
    assert np.array_equal(FrameBank(path)[9], expected[9])


@pytest.fixture(autouse=True)
def six_frames(inline, monkeypatch):
    """Six frames per seed: two moments of an episode from three cameras."""
    monkeypatch.setattr(render, "_FRAMES_PER_SEED", 6)


def test_appearance_varies_as_configured(monkeypatch):
    """Between two frames of one camera, randomised appearance changes pixels far more than motion alone."""
    monkeypatch.setattr(render, "_EVERY", 1)
    differences = {}
    for vary in (0.0, 1.0):
        frames = render.render_scenes(2, ("cube_pick",), ("xarm7",), 32, vary)
        assert frames.shape == (6, 32, 32, 3) and len({frame.tobytes() for frame in frames}) == 6
        assert frames.reshape(6, -1).std(1).min() > 5  # no empty image
        differences[vary] = np.abs(np.diff(frames[1::3].astype(float), axis=0)).mean()  # of the left camera
    assert differences[1.0] > 2 * differences[0.0]


def test_tasks_alternate_and_episode_ends_are_rendered(monkeypatch):
    monkeypatch.setattr(render, "_EVERY", 16)
    monkeypatch.setattr(render, "_FRAMES_PER_SEED", 24)
    reached, moments = [], render._moments

    def record_moments(env, seed):
        for _ in moments(env, seed):
            reached.append((env.settings.task, env.is_success))
            yield

    monkeypatch.setattr(render, "_moments", record_moments)
    frames = render.render_scenes(1, ("cube_pick", "stack"), ("xarm7",), 32, 0.0)
    assert len({frame.tobytes() for frame in frames}) == 24
    assert any(success for _, success in reached) and all("stack" in task.lower() for task, _ in reached)


def test_a_bank_of_both_arms_is_written_once(tmp_path, monkeypatch):
    settings = ScenesSettings(frames=9, image_size=32, workers=1)
    bank = np.load(make_scenes(settings, tmp_path))
    assert bank.shape == (12, 32, 32, 3)  # whole episodes of 6 frames
    assert np.array_equal(bank[6:], render.render_scenes(1, ("cube_pick",), ("xarm7", "panda"), 32, 0.6))
    assert json.loads((tmp_path / "meta.json").read_text()) == {
        "tasks": ["cube_pick"], "robots": ["xarm7", "panda"], "frames": 9, "image_size": 32, "vary": 0.6, "seed": 0,
    }  # fmt: skip
    monkeypatch.setattr(render, "render_scenes", None)
    assert np.array_equal(bank, np.load(make_scenes(settings, tmp_path)))
    refuses("meta.json: seed: ", make_scenes, settings.replace(seed=1), tmp_path)
    (tmp_path / "meta.json").unlink()
    refuses("meta.json: cannot be read", make_scenes, settings, tmp_path)  # frames of unknown origin


@pytest.fixture(scope="module")
def world():
    made = ObjectScene(96)
    yield made
    made.close()


@pytest.mark.parametrize("kind", [0, 9, 12, 17, 23])
def test_mask_and_depth_match_the_object_in_the_image(kind, world):
    large, small, again = (world.draw(kind, 5, small) for small in (False, True, False))
    assert all(np.array_equal(getattr(large, k), getattr(again, k)) for k in ("image", "mask", "depth"))
    label = 3 + kind
    shares = [(p.mask == label).mean() for p in (large, small)]
    assert shares[0] > 4 * shares[1] > 0 and shares[1] < 0.15**2
    assert set(np.unique(large.mask)) <= {0, 1, 2, label}  # clutter has no class
    seen, table = large.mask == label, large.mask == 1
    assert large.image[seen].std(0).max() > 0 and large.image.dtype == np.uint8
    assert large.depth[seen].mean() < large.depth[table].max()  # the object is not behind the table


def test_folders_of_images_masks_and_depth_are_reused(tmp_path, monkeypatch, world):
    monkeypatch.setitem(render._worlds, 96, world)
    settings = ObjectsSettings(train=26, test=3, image_size=96)
    assert make_objects(settings, tmp_path) == tmp_path
    assert len(list((tmp_path / "train/images").rglob("*.png"))) == 26
    assert (tmp_path / f"train/images/{CLASSES[1]}/000025.png").is_file()
    assert len(list((tmp_path / "test").rglob("*.png"))) == 9
    files = (tmp_path / f"train/{folder}/{CLASSES[0]}/000000.png" for folder in ("depth", "masks"))
    depth, mask = (np.asarray(Image.open(file)) for file in files)
    assert depth.dtype.itemsize * 8 in (16, 32) and depth.shape == mask.shape == (96, 96)
    assert 50 < depth[mask == 3].min() and depth.max() <= 10_000 and 3 in mask
    first, held_out = (tmp_path / f"{p}/images/{CLASSES[0]}/000000.png" for p in ("train", "test"))
    assert first.read_bytes() != held_out.read_bytes()
    meta, before = json.loads((tmp_path / "meta.json").read_text()), first.stat().st_mtime_ns
    assert meta["labels"] == list(LABELS) and meta["train"] == 26
    make_objects(settings, tmp_path)
    assert first.stat().st_mtime_ns == before
    refuses("meta.json: train: ", make_objects, settings.replace(train=4), tmp_path)
