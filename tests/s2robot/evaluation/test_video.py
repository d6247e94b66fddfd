"""Videos: the decoded frames, the position of the caption, and a failing encoder."""

import imageio_ffmpeg
import numpy as np
import pytest

from s2robot.evaluation.video import side_by_side, write_video
from tests.errors import refuses

RECORD = {"episode": 12, "seed": 4012, "success": False, "stage": "grasp"}


def frames_of(count: int, sizes: dict[str, tuple[int, int]]) -> list[dict[str, np.ndarray]]:
    plain = np.random.default_rng(0).integers(40, 200, (len(sizes), 3), dtype=np.uint8)
    images = {name: np.tile(x, (*size, 1)) for (name, size), x in zip(sizes.items(), plain, strict=True)}
    return [images] * count


def decode(path) -> tuple[dict, list[np.ndarray]]:
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, [np.frombuffer(raw, np.uint8).reshape(height, width, 3) for raw in reader]


def test_video_contains_every_frame(tmp_path):
    frames = frames_of(8, {"hand": (224, 224), "left": (224, 224)})
    path = write_video(tmp_path / "videos" / "episode.mp4", frames, RECORD, rate=10.0)
    meta, images = decode(path)
    assert meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p") and meta["fps"] == 10.0
    assert len(images) == 8 + 10
    bar = images[0].shape[0] - 224
    assert 20 < bar < 80 and images[0].shape[1] == 452  # 2 × 224 + 4
    middle = images[3][bar + 100 : bar + 200, 50:200].reshape(-1, 3).mean(0)
    assert middle == pytest.approx(frames[0]["hand"][0, 0], abs=6)
    assert images[0][:bar].max() > 200  # letters on the dark bar
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # playable before it is fully loaded
    assert sorted(p.name for p in path.parent.iterdir()) == ["episode.mp4"]


def test_cameras_are_side_by_side_and_odd_sizes_become_even(tmp_path):
    odd = frames_of(1, {"a": (37, 53), "b": (37, 53), "c": (37, 53)})
    image = decode(write_video(tmp_path / "e.mp4", odd, RECORD))[1][0]
    assert image.shape[0] % 2 == 0 and image.shape[1] % 2 == 0
    frame = frames_of(1, {"a": (50, 100), "b": (200, 100)})[0]
    row = side_by_side(frame, 100)
    assert row.shape == (100, 200 + 4 + 50, 3) and row.dtype == np.uint8
    assert (row[60, 100] == frame["a"][0, 0]).all() and (row[60, -10] == frame["b"][0, 0]).all()


def test_broken_encoder_keeps_the_old_video(tmp_path, monkeypatch):
    frames = frames_of(3, {"hand": (64, 64)})
    path = write_video(tmp_path / "e.mp4", frames, RECORD)
    before = path.read_bytes()
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\nexec cat >/dev/null\n")  # reads the frames and writes nothing
    fake.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg._io, "get_ffmpeg_exe", lambda: str(fake))
    refuses("e.mp4: cannot be written", write_video, path, frames, RECORD)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.mp4", "ffmpeg"]
