"""The page of a data set: what it holds, its videos, and its use in a browser."""

import json

import imageio.v3 as iio
import numpy as np
import pytest

from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.demos.store import EpisodeStore
from s2robot.inspection import films
from s2robot.inspection.films import FilmSettings, tiles
from s2robot.inspection.inspect import InspectSettings, inspect_demos, summary
from s2robot.inspection.tables import curves, plots, tables
from tests.browser import BROWSER, chromium
from tests.demos.test_store import ATTRIBUTES
from tests.inline import do_inline

CUPS = {
    "robot": "two_links", "joint_names": [], "rate_hz": 10, "cameras": ["top", "wrist/left"], "camera_geometry": {},
    "action_frame": "parts", "env_version": "elsewhere", "env_config": {}, "seed": 0, "kind": "images",
    "tasks": ["lift </script> the cup", "pour"], "source": {"format": "LeRobot v3.0", "name": "cups"},
    "action_parts": [
        {"name": "arm", "size": 2, "kind": "delta", "names": ["shoulder", "elbow"]},
        {"name": "claw", "size": 1, "kind": "binary"},
    ],
    "proprio_parts": [{"name": "state", "size": 9, "kind": "absolute"}],
}  # fmt: skip
LENGTHS = (12, 12, 9, 12)


def episode(i: int, length: int) -> dict[str, np.ndarray]:
    """Its pictures grow brighter step by step, so that a frame of the video tells which step it shows."""
    t = np.arange(length, dtype=np.float32)
    level = np.broadcast_to((40 + 10 * t)[:, None, None, None], (length, 24, 32, 3))
    speckled = level + 20 * (np.indices((24, 32)).sum(0) % 2)[None, ..., None]
    return {
        "action": np.stack([0.1 * np.sin(t), -0.1 * np.cos(t), (t > 5).astype(np.float32)], 1),
        "proprio": np.sin(t[:, None] / 5 + np.arange(9) + i / 50).astype(np.float32),
        "images_top": speckled.astype(np.uint8),
        "images_wrist/left": np.ascontiguousarray(speckled[:, :16, :16].astype(np.uint8)),
    }


@pytest.fixture
def cups(tmp_path, monkeypatch):
    """Four episodes, the third a failure; films are made in this process, in a cache of the test's own."""
    do_inline(monkeypatch)
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))
    with EpisodeStore.create(tmp_path / "cups.zarr", CUPS) as store:
        for i, length in enumerate(LENGTHS):
            store.append(episode(i, length), {"task": i % 2, "success": i != 2, "source_episode": 10 + i})
    return tmp_path / "cups.zarr"


def inspect(store, out, **changes):
    return inspect_demos(DemosSettings(path=str(store)), InspectSettings(**changes), out)


def test_videos_hold_every_step_of_all_cameras(cups, tmp_path):
    inspect(cups, tmp_path / "a")
    video = tmp_path / "a/episodes/0002.mp4"
    frames = iio.imread(video)
    # the wrist's 16 × 16 at the height of the other
    assert frames.shape == (LENGTHS[2], 24, 32 + films.GAP + 24, 3)
    stored = episode(2, 9)["images_top"]
    for t, frame in enumerate(frames):  # upright, in step: its brightness is the step's
        assert abs(frame[:, :32].mean() - stored[t].mean()) < 3
        assert abs(frame[:, 32 + films.GAP :].mean() - stored[t].mean()) < 3
    assert not [p for p in tmp_path.rglob("*.part.*")]


def test_whole_numbers_keep_their_digits(tmp_path):
    stamps = 1_700_000_000_000_000_000 + 100_000_000 * np.arange(12)  # ns, one every control step
    index = (2**24 + np.arange(12)).astype(np.int32)
    more = {"stamp_ns": stamps, "index": index, "flag": np.arange(12) % 2 > 0}
    with EpisodeStore.create(tmp_path / "more.zarr", CUPS) as store:
        store.append(episode(0, 12) | more)
        found = {table.key: table.values for table in tables(store, 1)}
    assert np.array_equal(np.diff(found["stamp_ns"][:, 0]), np.full(11, 1e8))
    assert np.array_equal(found["index"][:, 0], index)
    assert found["flag"].dtype == found["action"].dtype == np.float32


def test_a_broken_encoder_is_one_line_and_leaves_nothing(cups, tmp_path, monkeypatch):
    def fails(path, *_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(films, "encode", fails)
    with pytest.raises(UserError, match="mp4: the video cannot be written: disk full"):
        inspect(cups, tmp_path / "a")
    assert not list((tmp_path / "a/episodes").iterdir())


def test_cameras_lie_in_rows():
    assert tiles({"a": (24, 32)}, 480).places == {"a": (0, 0, 32, 24)}
    four = tiles(dict.fromkeys("abcd", (480, 640)), 240)
    assert (four.width, four.height, four.places["d"]) == (644, 484, (324, 244, 320, 240))
    odd = tiles({"a": (25, 33)}, 480)
    assert (odd.width, odd.height) == (34, 26)


def test_pictures_that_freeze_in_a_store_are_found(cups, tmp_path, capsys):
    frozen = episode(4, 12)
    frozen["images_top"][5:9] = frozen["images_top"][4]
    frozen["images_wrist/left"][2] = 0
    with EpisodeStore.open(cups, "a") as store:
        store.append(frozen, {"task": 0, "success": True, "source_episode": 14})
    page = inspect(cups, tmp_path / "a").read_text()
    assert "odd: frozen 1, blank 1" in capsys.readouterr().out
    assert "camera top: one image for 5 steps" in page and "camera wrist/left: black" in page
    assert '<a href="#4:4">4</a>' in page


def test_curves_of_a_page(cups):
    found = tables(EpisodeStore.open(cups), 4)
    assert [t.key for t in found] == ["action", "proprio"]
    titles = [title for t in found for title, _ in plots(t)]
    assert titles == ["action: arm", "action: claw", "proprio: state 1–5", "proprio: state 6–9"]
    assert found[0].names == ["shoulder", "elbow", "claw"]
    assert {"action shoulder", "action claw", "proprio state 9"} <= rows(EpisodeStore.open(cups)).keys()
    each, lines = curves(np.array([[1.0, np.nan], [1 / 3, 2]]), 10)
    assert (each, lines) == (1, [[1.0, 0.33333], [None, 2.0]])
    values = np.zeros((10_001, 1))
    values[7_777], values[3] = 5, -4
    each, (line,) = curves(values, 1000)  # a long episode keeps its peaks
    assert len(line) <= 1002 and max(line) == 5 and min(line) == -4
    assert abs(line.index(5) * each - 7_777) < 2 * each


def test_the_first_episodes_alone_and_without_videos_no_picture_is_read(cups, tmp_path, monkeypatch):
    monkeypatch.setattr(films, "film", None)
    settings = InspectSettings(videos=FilmSettings(write=False))
    page = inspect_demos(DemosSettings(path=str(cups), episodes=3), settings, tmp_path / "a")
    text = page.read_text()
    assert "cups: 3 episodes, 33 steps" in text and "Not looked for: frozen, blank (" in text
    assert "<video" not in text and len(list((tmp_path / "a/episodes").iterdir())) == 3
    script = (page.parent / "episodes/0000.js").read_text()
    each, lines = json.loads(script.removeprefix("episode(0,").removesuffix(")\n"))
    assert each == 1 and len(lines) == 12 and len(lines[0]) == 12
    with pytest.raises(UserError, match=r"expected demos.episodes=<number>"):
        inspect_demos(DemosSettings(path=str(cups), episodes=[1, 2]), settings, tmp_path / "b")


def rows(store) -> dict[str, str]:
    text = summary(store, tables(store, len(store)), store.episode_ends)
    return {line[2:].partition("  ")[0].strip(): line for line in text.splitlines()[1:]}


def test_facts_and_ranges(tmp_path):
    """Episodes of 4, 6 and 10 steps; only the start of the cube counts."""
    world = {"cube_size": 0.04, "box_x": [-0.12, 0.12], "box_y": [-0.16, 0.16]}
    with EpisodeStore.create(tmp_path / "a.zarr", ATTRIBUTES | {"env_config": world}) as store:
        for i, length in enumerate((4, 6, 10)):
            action = np.full((length, 8), 0.1, np.float32)
            action[-1, 2] = -0.25
            cube = np.tile([0.1 * i - 0.1, 0.05 * i, 0.02, 1, 0, 0, 0.1], (length, 1))
            cube[-1, :2] = 9
            arrays = {"action": action, "proprio": action + 400, "cube_pose": cube}
            store.append(arrays | {"perturbed": np.arange(length) == 1}, {"success": i != 1})
    found = rows(store)
    for name, values in (
        ("episodes", "3 (20 steps)"), ("rate", "10 Hz"), ("steps an episode", "4 to 10, median 6"),
        ("successful", "2 of 3"), ("perturbed", "15.0 %"), ("x at the start", "-0.1 to +0.1"),
    ):  # fmt: skip
        assert values in found[name]
    assert found["action joint 3"].split()[-3:] == ["-0.250", "+0.100", "+0.100"]
    assert found["proprio joint 7"].split()[-3:] == ["+400.100"] * 3  # columns stay apart
    assert "action gripper" in found


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_the_page_in_a_browser(cups, tmp_path):
    """Another episode is chosen, the slider moved, the list filtered: video, cursor and list follow."""
    page_file = inspect(cups, tmp_path / "a")
    with chromium(tmp_path / "profile") as open_page:
        page = open_page(page_file, 1280, 900)
        page.value("window.one = (name) => document.querySelector(name), 0")
        page.value("window.all = (name, of) => [...document.querySelectorAll(name)].map(of), 0")
        page.wait("one('#video').readyState >= 2 && one('.chart b').textContent")
        assert page.value("all('.camera', (c) => c.textContent)") == ["top", "wrist/left"]
        assert page.value("all('#episodes tr', (r) => 1)") == [1] * 4
        assert page.value("one('#title').textContent").startswith("Episode 0 · source 10 · 12 steps")

        page.click("#episodes tr:nth-child(3)")
        page.wait("one('#video').src.endsWith('0002.mp4') && one('#video').readyState >= 2")
        title = page.value("one('#title').textContent")
        assert "Episode 2" in title and "✗ failure" in title and "lift </script> the cup" in title

        page.click("#step", 0.5)  # the middle of 9 steps: number 4
        page.wait("Math.abs(one('#video').currentTime - 0.45) < 0.02 && !one('#video').seeking")
        assert page.value("one('#step').value") == "4"
        assert page.value("all('.cursor', (c) => c.style.left)") == ["50%"] * 4
        page.wait("one('.chart b').textContent === (0.1 * Math.sin(4)).toFixed(4)")
        page.press("ArrowRight", 39)
        page.wait("Math.abs(one('#video').currentTime - 0.55) < 0.02")
        page.press("ArrowDown", 40)
        page.wait("one('#title').textContent.startsWith('Episode 3')")
        page.press(" ", 32)
        page.wait("+one('#step').value === 11 && one('#play').textContent === '▶'")

        page.click("#words")
        page.write("cup")
        shown = "all('#episodes tr', (r) => r.hidden || r.cells[0].textContent).filter((r) => r !== true)"
        assert page.value(shown) == ["0", "2"]
        assert page.value("one('#shown').textContent") == "2 of 4"
        page.click("[data-sort=steps]")
        assert page.value(shown) == ["2", "0"]

        narrow = {"width": 800, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **narrow)
        assert page.value("document.documentElement.scrollWidth") <= 800
        assert page.errors == []
