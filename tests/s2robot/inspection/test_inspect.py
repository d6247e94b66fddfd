"""The page of a dataset: its contents, videos and use in a browser; and findings, each kind planted in clean data."""

import json
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
import zarr

from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.core.files import shipped_demos
from s2robot.demos.store import EpisodeStore
from s2robot.inspection import films
from s2robot.inspection.advice import AdviceSettings, advise
from s2robot.inspection.films import FilmSettings, tiles
from s2robot.inspection.findings import KINDS, Thresholds, find, unchecked_kinds
from s2robot.inspection.inspect import InspectSettings, inspect_demos, summary
from s2robot.inspection.tables import Columns, FrameStats, Table, curves, plots, tables
from tests.browser import BROWSER, chromium
from tests.demos.test_store import ATTRIBUTES
from tests.errors import refuses

CUPS = ATTRIBUTES | {
    "joint_names": [], "cameras": ["top", "wrist/left"], "camera_geometry": {}, "env_config": {}, "kind": "images",
    "tasks": ["lift </script> the cup", "pour"], "source": {"format": "LeRobot v3.0", "name": "cups"},
    "action_parts": [
        {"name": "arm", "size": 2, "kind": "delta", "names": ["shoulder", "elbow"]},
        {"name": "claw", "size": 1, "kind": "binary"},
    ],
    "proprio_parts": [{"name": "state", "size": 9, "kind": "absolute"}],
}  # fmt: skip
LENGTHS = (12, 12, 9, 12)


def episode(i: int, length: int) -> dict[str, np.ndarray]:
    """Return an episode whose images grow brighter step by step, so that a video frame shows its step."""
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
def cups(inline, tmp_path, monkeypatch):
    """Four episodes, the third a failure; videos are made in this process, with a separate cache."""
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))
    with EpisodeStore.create(tmp_path / "cups.zarr", CUPS) as store:
        for i, length in enumerate(LENGTHS):
            store.append(episode(i, length), {"task": i % 2, "success": i != 2, "source_episode": 10 + i})
    return tmp_path / "cups.zarr"


def inspect(store, out, **changes):
    return inspect_demos(DemosSettings(path=str(store)), InspectSettings(**changes), out)


def test_videos_contain_every_step_of_all_cameras(cups, tmp_path):
    inspect(cups, tmp_path / "a")
    frames = iio.imread(tmp_path / "a/episodes/0002.mp4")
    # the wrist image, 16 × 16, is scaled to the height of the other
    assert frames.shape == (LENGTHS[2], 24, 32 + films.GAP + 24, 3)
    stored = episode(2, 9)["images_top"]
    for t, frame in enumerate(frames):  # the brightness identifies the step
        assert abs(frame[:, :32].mean() - stored[t].mean()) < 3
        assert abs(frame[:, 32 + films.GAP :].mean() - stored[t].mean()) < 3
    assert not [p for p in tmp_path.rglob("*.part.*")]


def test_large_integers_keep_their_digits(tmp_path):
    stamps = 1_700_000_000_000_000_000 + 100_000_000 * np.arange(12)  # ns, one every control step
    index = (2**24 + np.arange(12)).astype(np.int32)
    with EpisodeStore.create(tmp_path / "more.zarr", CUPS) as store:
        store.append(episode(0, 12) | {"stamp_ns": stamps, "index": index, "flag": np.arange(12) % 2 > 0})
        values = {table.key: table.values for table in tables(store, 1)}
    assert np.array_equal(np.diff(values["stamp_ns"][:, 0]), np.full(11, 1e8))
    assert np.array_equal(values["index"][:, 0], index)
    assert values["flag"].dtype == values["action"].dtype == np.float32
    zarr.open_array(tmp_path / "more.zarr/data/action")[3, 0] = np.nan  # as another program may do
    refuses("action: expected finite numbers, got NaN", tables, EpisodeStore.open(tmp_path / "more.zarr"), 1)


def test_broken_encoder_is_one_error_line_and_leaves_no_file(cups, tmp_path, monkeypatch):
    def fails(path, *_, **__):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", fails)
    refuses("mp4: cannot be written: disk full", inspect, cups, tmp_path / "a")
    assert not list((tmp_path / "a/episodes").iterdir())


def test_cameras_are_arranged_in_rows():
    assert tiles({"a": (24, 32)}, 480).places == {"a": (0, 0, 32, 24)}
    four = tiles(dict.fromkeys("abcd", (480, 640)), 240)
    assert (four.width, four.height, four.places["d"]) == (644, 484, (324, 244, 320, 240))
    odd = tiles({"a": (25, 33)}, 480)
    assert (odd.width, odd.height) == (34, 26)


def test_frozen_images_in_a_store_are_found(cups, tmp_path, capsys):
    frozen = episode(4, 12)
    frozen["images_top"][5:9] = frozen["images_top"][4]
    frozen["images_wrist/left"][2] = 0
    with EpisodeStore.open(cups, "a") as store:
        store.append(frozen, {"task": 0, "success": True, "source_episode": 14})
    page = inspect(cups, tmp_path / "a").read_text()
    assert "anomalies: frozen 1, blank 1" in capsys.readouterr().out
    assert "camera top: one image for 5 steps" in page and "camera wrist/left: black" in page
    assert '<a href="#4:4">4</a>' in page


def test_curves_and_their_titles(cups):
    groups = tables(EpisodeStore.open(cups), 4)
    assert [t.key for t in groups] == ["action", "proprio"]
    titles = [title for t in groups for title, _ in plots(t)]
    assert titles == ["action: arm", "action: claw", "proprio: state 1–5", "proprio: state 6–9"]
    assert groups[0].names == ["shoulder", "elbow", "claw"]
    assert {"action shoulder", "action claw", "proprio state 9"} <= lines_of(EpisodeStore.open(cups)).keys()
    assert curves(np.array([[1.0, 0.0], [1 / 3, 2]]), 10) == (1, [[1.0, 0.33333], [0.0, 2.0]])
    values = np.zeros((10_001, 1))
    values[7_777], values[3] = 5, -4
    each, (line,) = curves(values, 1000)  # decimation keeps the peaks
    assert len(line) <= 1002 and max(line) == 5 and min(line) == -4
    assert abs(line.index(5) * each - 7_777) < 2 * each


def test_page_of_some_episodes_without_videos_reads_no_images(cups, tmp_path, monkeypatch):
    monkeypatch.setattr(films, "film", None)
    settings = InspectSettings(videos=FilmSettings(write=False))
    page = inspect_demos(DemosSettings(path=str(cups), episodes=3), settings, tmp_path / "a")
    text = page.read_text()
    assert "cups: 3 episodes, 33 steps" in text and "Not checked: frozen, blank, late (" in text
    assert "<video" not in text and len(list((tmp_path / "a/episodes").iterdir())) == 3
    script = (page.parent / "episodes/0000.js").read_text()
    each, lines = json.loads(script.removeprefix("episode(0,").removesuffix(")\n"))
    assert each == 1 and len(lines) == 12 and len(lines[0]) == 12
    with pytest.raises(UserError, match=r"expected demos.episodes=<number>"):
        inspect_demos(DemosSettings(path=str(cups), episodes=[1, 2]), settings, tmp_path / "b")


def lines_of(store) -> dict[str, str]:
    text = summary(store, tables(store, len(store)), store.episode_ends)
    return {line[2:].partition("  ")[0].strip(): line for line in text.splitlines()[1:]}


def test_summary_lists_facts_and_ranges(tmp_path):
    """Episodes of 4, 6 and 10 steps; only the initial cube pose counts."""
    world = {"cube_size": 0.04, "box_x": [-0.12, 0.12], "box_y": [-0.16, 0.16]}
    with EpisodeStore.create(tmp_path / "a.zarr", ATTRIBUTES | {"env_config": world}) as store:
        for i, length in enumerate((4, 6, 10)):
            action = np.full((length, 8), 0.1, np.float32)
            action[-1, 2] = -0.25
            cube = np.tile([0.1 * i - 0.1, 0.05 * i, 0.02, 1, 0, 0, 0.1], (length, 1))
            cube[-1, :2] = 9
            arrays = {"action": action, "proprio": action + 400, "cube_pose": cube}
            store.append(arrays | {"perturbed": np.arange(length) == 1}, {"success": i != 1})
    lines = lines_of(store)
    for name, values in (
        ("episodes", "3 (20 steps)"), ("rate", "10 Hz"), ("steps per episode", "4 to 10, median 6"),
        ("successful", "2 of 3"), ("perturbed", "15.0 %"), ("x at the start", "-0.1 to +0.1"),
    ):  # fmt: skip
        assert values in lines[name]
    assert lines["action joint 3"].split()[-3:] == ["-0.250", "+0.100", "+0.100"]
    assert lines["proprio joint 7"].split()[-3:] == ["+400.100"] * 3  # columns stay apart
    assert "action gripper" in lines


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_page_in_a_browser(cups, tmp_path):
    """Select an episode, move the slider, filter the list: video, cursor and list follow."""
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


EPISODES, STEPS = 5, 40
ALL = slice(None)


def rows(episode: int, first: int, steps: int = STEPS) -> slice:
    """Return the rows of some steps of an episode, to its end by default."""
    return slice(episode * STEPS + first, min(episode * STEPS + first + steps, (episode + 1) * STEPS))


class Data:
    """A clean recording: a state that oscillates, a gripper that closes half-way, images that change."""

    def __init__(self) -> None:
        t = np.arange(EPISODES * STEPS)
        self.ends = np.arange(1, EPISODES + 1) * STEPS
        self.state = np.stack([np.sin(t / 6), 0.1 * np.cos(t / 9)], 1)
        self.action = np.stack([np.cos(t / 6) / 6, (t % STEPS > STEPS // 2).astype(float)], 1)
        self.times = t[:, None] % STEPS / 10
        levels = (3.0, 120.0, 40.0)
        self.images = [{"hand": FrameStats(*(np.full(STEPS, x) for x in levels))} for _ in range(EPISODES)]

    def set(self, name: str, at: slice, column: int, value) -> None:
        getattr(self, name)[at, column] = value

    def add(self, name: str, at: slice, column: int, value) -> None:
        getattr(self, name)[at, column] += value

    def show(self, episode: int, steps: slice, **stats: float) -> None:
        for name, value in stats.items():
            getattr(self.images[episode]["hand"], name)[steps] = value

    def keep(self, steps: slice) -> None:
        """Keep a single episode with these steps."""
        self.state, self.action, self.times = self.state[steps], self.action[steps], self.times[steps]
        self.ends, self.images = np.array([len(self.times)]), self.images[:1]

    def findings(self, **changes):
        limits = np.array([[-0.2], [0.2]])
        parts = [Columns("turn", slice(0, 1), "delta", limits), Columns("grip", slice(1, 2), "binary")]
        tables = [
            Table("action", ["turn", "grip"], parts, self.action),
            Table("proprio", ["angle", "height"], [Columns("proprio", slice(0, 2), "absolute")], self.state),
            Table("timestamp", ["timestamp"], [Columns("timestamp", slice(0, 1), "")], self.times),
        ]
        return find(tables, self.ends, 10.0, self.images, Thresholds(**changes))


@pytest.mark.parametrize(
    ("plant", "kind", "where", "text"),
    [
        (lambda d: d.show(3, slice(11, 15), change=0), "frozen", (3, 10, 5), "camera hand: one image for 5"),
        (lambda d: d.show(1, slice(5, 8), mean=1, deviation=1), "blank", (1, 5, 3), "camera hand: black"),
        (lambda d: d.show(1, slice(5, 8), mean=254, deviation=2), "blank", (1, 5, 3), "camera hand: overexposed"),
        (lambda d: d.show(1, slice(5, 8), mean=90, deviation=0.2), "blank", (1, 5, 3), "camera hand: a single colour"),
        (lambda d: d.add("state", rows(4, 20), 1, 0.15), "jump", (4, 20), "height: by 0.1"),
        (lambda d: d.set("state", ALL, 1, 0.5), "constant", (None,), "proprio: height (0.5)"),
        (lambda d: d.set("action", rows(1, 3, 10), 0, np.float32(0.2)), "saturated", (1, 3, 10), "turn: "),
        (lambda d: d.add("times", rows(1, 9), 0, 0.2), "clock", (1, 9), "timestamp: 2 dropped"),
        (lambda d: d.add("times", rows(1, 9), 0, -0.06), "clock", (1, 9), "timestamp: irregular"),
        (lambda d: d.add("times", rows(1, 9), 0, -0.15), "clock", (1, 9), "timestamp: runs backwards"),
        (lambda d: d.set("action", rows(3, 0), 1, 0), "gripper", (3,), "grip never closes"),
        (lambda d: d.set("action", rows(3, 0), 1, 1), "gripper", (3,), "grip never opens"),
    ],
)  # fmt: skip
def test_planted_fault_is_the_only_finding(plant, kind, where, text):
    data = Data()
    plant(data)
    (finding,) = data.findings()
    assert (finding.kind, (finding.episode, finding.step, finding.steps)[: len(where)]) == (kind, where)
    assert text in finding.text


@pytest.mark.parametrize(
    ("plant", "limits"),
    [
        (lambda d: d.show(0, ALL, mean=252, deviation=17), {}),  # a drawing on white or black is not blank
        (lambda d: d.show(2, ALL, mean=3, deviation=17), {}),
        # three fast steps in a row: the arm is swung or pushed
        (lambda d: d.add("state", rows(4, 20), 1, np.minimum(np.arange(20) + 1, 3) * 0.08), {}),
        (lambda d: d.set("state", ALL, 1, d.action[:, 1]), {}),  # a step in every episode is no jump
        (lambda d: (d.keep(rows(0, 0)), d.add("state", slice(20, 40), 1, 5)), {}),  # no other episode to compare with
        (lambda d: d.set("action", rows(1, 3, 10), 0, np.float32(0.2)), {"saturated_steps": 11}),
    ],
)  # fmt: skip
def test_normal_data_have_no_findings(plant, limits):
    data = Data()
    plant(data)
    assert data.findings(**limits) == []


def test_frozen_images_count_during_motion_and_once_per_episode():
    data = Data()
    for t in range(1, 36, 5):
        data.show(3, slice(t, t + 4), change=0)
    (finding,) = data.findings(frozen_motion=0.0)
    assert (finding.episode, finding.step) == (3, 0) and finding.text.endswith("; 6 more until step 34")
    data.state[rows(3, 0)] = data.state[3 * STEPS]
    assert not [f for f in data.findings(jump_times=100) if f.kind == "frozen"]


@pytest.mark.parametrize("turn", [2 * np.pi, 360.0])
def test_wrapping_angle_is_not_a_jump(turn):
    data, t = Data(), np.arange(EPISODES * STEPS)
    data.state[:, 0] = (0.2 + np.sin(t / 6)) * turn / 20 % turn  # around 0
    assert np.ptp(data.state[:, 0]) > 0.9 * turn and data.findings() == []
    data.state[3 * STEPS + 10 :, 0] = (data.state[3 * STEPS + 10 :, 0] + turn / 3) % turn
    assert [(f.kind, f.episode) for f in data.findings()] == [("jump", 3)]


@pytest.mark.parametrize("steps", [10, 120])
def test_much_shorter_or_longer_episodes_are_found(steps):
    data = Data()
    data.keep(np.append(np.arange(2 * STEPS), np.resize(np.arange(STEPS), steps)))  # repeated if longer
    data.ends, data.images = np.array([STEPS, 2 * STEPS, 2 * STEPS + steps]), []
    data.times[2 * STEPS :, 0], data.action[-1, 1] = np.arange(steps) / 10, 1
    (one,) = data.findings(jump_times=100)
    assert (one.kind, one.episode, one.text) == ("length", 2, f"{steps} steps, the median is 40")


def test_unchecked_kinds_are_listed():
    steps = Table("action", ["turn"], [Columns("turn", slice(0, 1), "delta")], np.zeros((8, 1)))
    kinds = ", ".join(unchecked_kinds([steps], np.array([8]), [])).split(", ")
    assert set(KINDS) - set(kinds) == {"length", "constant"}  # those that ran
    assert "duplicate" in unchecked_kinds([steps], np.arange(1, 3002), [])
    assert ["dead" in unchecked_kinds([steps], np.arange(1, n + 1), []) for n in (9, 10)] == [True, False]
    assert ["late" in unchecked_kinds([steps], np.array([n]), [{}]) for n in (49, 50)] == [True, False]


@pytest.mark.parametrize(("size", "words"), [(42, "[1]"), (21, "[2]"), (12, "[2]"), (6, "[2]")])
def test_scale_is_advised_from_the_size_of_the_moved_object(size, words, tmp_path):
    rng = np.random.default_rng(0)
    with EpisodeStore.create(tmp_path / "moved.zarr", CUPS) as store:
        for i in range(8):
            images, (y, x) = np.full((10, 256, 256, 3), 100, np.uint8), rng.integers(60, 200, 2)
            images[:6, y : y + size, x : x + size] = [200, 30, 40]  # then an arm takes it away
            for t, frame in enumerate(images):
                frame[: 20 + 2 * t, 100 + i : 130 + i + 5 * t] = 20
            store.append({**episode(i, 10), "images_top": images}, {"success": True})
        line = advise(store, 8, AdviceSettings())
    assert f"object {size} px in frames of 256 px" in line and f"{words} should help" in line


def test_shipped_demos_are_advised_scale_2_as_measured():
    store = EpisodeStore.open(shipped_demos("xarm7_cube"))  # scale 1: 32 %, 2: 74 %, 1, 2 and 3: 75 %
    assert "s2.scales=[2] should help" in advise(store, 6, AdviceSettings())
    assert advise(store, 1, AdviceSettings()).startswith("no moved object")
