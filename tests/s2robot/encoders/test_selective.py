"""Scale-selective S2: against a slow second implementation, and each rule by itself."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from s2robot.backbones.vit import MVPViT, ViTSpec
from s2robot.common.errors import UserError
from s2robot.encoders import selective
from s2robot.encoders.encoder import S2Encoder
from s2robot.encoders.selective import Selective, SelectiveEncoder, select

torch.set_num_threads(1)
PATCH = 4


def make(grid: int = 2, sizes=(1, 2), **options) -> S2Encoder:
    """A small random transformer with `grid` tokens along the side of its tile; sizes in tiles."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = MVPViT(ViTSpec(PATCH * grid, PATCH, 8, 1, 2))
        for parameter in vit.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return S2Encoder(vit, [PATCH * grid * k for k in sizes], **options)


def picture(encoder, seed: int) -> np.ndarray:
    side = encoder.image_size
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def spy(encoder, monkeypatch) -> list[int]:
    """How many tiles each call of the model gets."""
    calls: list[int] = []
    model = encoder._model
    monkeypatch.setattr(encoder, "_model", lambda x: (calls.append(len(x)), model(x))[1])
    return calls


class Slow:
    """The rules once more: a tile, a frame and a model call at a time, maps put together by index."""

    def __init__(self, encoder, rules: Selective):
        self.encoder, self.rules = encoder, rules
        self.known: dict = {}
        self.seen: Counter = Counter()
        self.counts: Counter = Counter()

    def tokens(self, pixels):  # (3, t, t) -> (g, g, D)
        e = self.encoder
        with torch.inference_mode():
            out = e._model(torch.from_numpy(pixels)[None] * e.scale + e.shift)[0, e.num_prefix_tokens :]
        g = int(len(out) ** 0.5)
        return out.float().numpy().reshape(g, g, -1)

    def encode(self, image, stream, point=None):
        e, rules, t = self.encoder, self.rules, self.encoder.tile
        self.seen[stream] += 1
        cuts, maps = {}, []
        for size in e.sizes:
            r = e.image_size // size
            level = image.reshape(size, r, size, r, 3).mean((1, 3)).transpose(2, 0, 1).astype(np.float32)
            for y in range(size // t):
                for x in range(size // t):
                    cuts[size, y, x] = level[:, y * t : y * t + t, x * t : x * t + t]
        base, g = e.sizes[0], e.grid // (e.sizes[0] // t)

        def stale(place):
            return (stream, place) not in self.known or (
                self.known[stream, place][0].tobytes() != cuts[place].tobytes()
            )

        def compute(place, coarse):
            self.known[stream, place] = cuts[place], self.tokens(cuts[place]), coarse
            self.counts["computed"] += 1

        coarse = np.zeros((e.grid, e.grid, e.dim // len(e.sizes)), np.float32)
        for place in [p for p in cuts if p[0] == base]:
            if stale(place):
                compute(place, None)
            else:
                self.counts["reused"] += 1
            _, y, x = place
            coarse[y * g : y * g + g, x * g : x * g + g] = self.known[stream, place][1]
        maps.append(coarse)

        def below(place, of):  # the coarse tokens under a fine tile, as many as it has itself
            size, y, x = place
            grown = of.repeat(size // base, 0).repeat(size // base, 1)
            return grown[y * g : y * g + g, x * g : x * g + g]

        def change(place):
            if (stream, place) in self.known:
                return False, np.abs(cuts[place] - self.known[stream, place][0]).sum()
            return True, np.abs(cuts[place] - cuts[place].mean((1, 2), keepdims=True)).sum()

        def moved(place):
            now = below(place, coarse)
            if (stream, place) in self.known:
                return False, np.linalg.norm(now - below(place, self.known[stream, place][2]))
            return True, np.linalg.norm(now.max((0, 1)) - now.min((0, 1)))

        def near(place):
            size, y, x = place
            w = t / size
            dx = max(x * w - point[0], 0, point[0] - x * w - w)
            dy = max(y * w - point[1], 0, point[1] - y * w - w)
            return -np.hypot(dx, dy)

        fine = [p for p in cuts if p[0] != base]
        wanted = [p for p in fine if stale(p)]
        self.counts["reused"] += len(fine) - len(wanted)
        key = {"change": change, "coarse": moved, "gripper": lambda p: (near(p), *change(p))}[rules.choose]
        wanted.sort(key=key, reverse=True)
        first = rules.warm_start and self.seen[stream] == 1
        for place in wanted if first else wanted[: int(rules.tiles)]:
            compute(place, coarse)
        for size in e.sizes[1:]:
            side = e.grid * size // base
            level = np.zeros((side, side, coarse.shape[-1]), np.float32)
            for _, y, x in [p for p in fine if p[0] == size]:
                place = size, y, x
                tokens = below(place, coarse)
                if not stale(place) or (rules.fill == "last" and (stream, place) in self.known):
                    tokens = self.known[stream, place][1]
                self.counts["filled"] += stale(place)
                level[y * g : y * g + g, x * g : x * g + g] = tokens
            r = size // base
            maps.append(level.reshape(e.grid, r, e.grid, r, -1).mean((1, 3)))
        out = np.concatenate(maps, -1).reshape(-1, e.dim)
        return out.mean(0, keepdims=True) if e.pool == "mean" else out


@settings(max_examples=60, deadline=None)
@given(
    grid=st.integers(1, 3),
    sizes=st.sampled_from([(1, 2), (1, 3), (1, 2, 4), (2, 4), (2, 6)]),
    rules=st.builds(
        Selective,
        tiles=st.integers(0, 5),
        choose=st.sampled_from(["change", "coarse", "gripper"]),
        fill=st.sampled_from(["last", "coarse"]),
        warm_start=st.booleans(),
    ),
    pool=st.sampled_from(["tokens", "mean"]),
    calls=st.lists(st.lists(st.integers(0, 1), max_size=3), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_agrees_with_a_slow_implementation(grid, sizes, rules, pool, calls, seed):
    encoder = make(grid, sizes, pool=pool)
    fast, slow = SelectiveEncoder(encoder, rules), Slow(encoder, rules)
    rng = np.random.default_rng(seed)
    frames = [picture(encoder, seed), picture(encoder, seed + 1)]  # of two cameras
    for streams in calls:
        slow.counts.clear()
        shown, points, expected = [], rng.uniform(-0.2, 1.2, (len(streams), 2)), []
        for stream, point in zip(streams, points, strict=True):
            y, x = rng.integers(0, encoder.image_size, 2)
            frames[stream] = frames[stream].copy()
            frames[stream][y : y + rng.integers(5 * PATCH), x : x + 5] ^= np.uint8(rng.integers(1, 256))
            shown.append(frames[stream])
            expected.append(slow.encode(shown[-1], stream, point))
        images = np.stack(shown) if shown else np.zeros((0, 8, 8, 3), np.uint8)
        tokens = fast.encode(images, streams, points)
        assert tokens.shape == (len(streams), encoder.num_tokens, encoder.dim)
        assert tokens.dtype == torch.float32
        assert fast.counts == {"frames": len(streams), **{k: slow.counts[k] for k in list(fast.counts)[1:]}}
        for got, want in zip(tokens.numpy(), expected, strict=True):
            np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.parametrize("pool", ["tokens", "mean"])
@pytest.mark.parametrize("choose", ["change", "coarse", "gripper"])
def test_a_budget_for_all_tiles_is_the_encoder(choose, pool, dtype, atol):
    encoder = make(3, (1, 2, 4), pool=pool, dtype=dtype)
    seeing = select(encoder, {"tiles": 20, "choose": choose})
    points = np.full((2, 2), 0.5)
    for seed in (0, 1, 1):
        images = np.stack([picture(encoder, 10 + seed), picture(encoder, 20 + seed)])
        np.testing.assert_allclose(
            seeing.encode(images, "ab", points), encoder.encode(torch.from_numpy(images)), atol=atol
        )
    assert seeing.counts == {"frames": 2, "computed": 0, "reused": 42, "filled": 0}
    assert seeing.totals == {"frames": 6, "computed": 84, "reused": 42, "filled": 0}


def test_a_tile_of_the_same_pixels_keeps_its_features_exactly(monkeypatch):
    encoder = make(2)
    calls = spy(encoder, monkeypatch)
    seeing = select(encoder, {"tiles": 4, "choose": "change"})
    image = picture(encoder, 0)
    first = seeing.encode(image[None], "a")
    half = encoder.tile
    image[half:, :half] ^= 255  # the lower left tile
    second = seeing.encode(image[None], "a")
    assert calls == [5, 2]
    fine = (encoder.dim // 2) * torch.arange(1, 2)
    lower_left = 2  # with two tokens along a tile, and averaging by two, a fine tile is one token of the grid
    for token in range(4):
        same = torch.equal(first[0, token, fine:], second[0, token, fine:])
        assert same == (token != lower_left)
    assert torch.equal(seeing.encode(image[None], "a"), second)
    assert calls == [5, 2]
    np.testing.assert_allclose(second, encoder.encode(torch.from_numpy(image)[None]), atol=1e-5)


def test_all_tiles_of_a_call_are_one_call_of_the_model(monkeypatch):
    encoder = make(1, frames_per_call=3)
    images = np.stack([picture(encoder, i) for i in range(3)])
    calls = spy(encoder, monkeypatch)
    for choose, expected in (("change", [3 + 2 * 3]), ("gripper", [3 + 2 * 3]), ("coarse", [3, 2 * 3])):
        seeing = select(encoder, {"tiles": 2, "choose": choose, "warm_start": False})
        seeing.encode(images, "aab", np.zeros((3, 2)))
        assert calls == expected
        calls.clear()


def test_change_that_was_passed_over_adds_up():
    encoder = make(2)
    seeing = select(encoder, {"tiles": 1, "choose": "change"})
    half, image = encoder.tile, np.full((encoder.image_size, encoder.image_size, 3), 100, np.uint8)
    seeing.encode(image[None], "a")
    flicker = image.copy()
    drawn = []
    for step in range(1, 8):
        flicker[:half, :half] = 100 + 3 * (step % 2)  # to and fro by 3
        flicker[half:, half:] = 100 + step  # slowly away
        seeing.encode(flicker[None], "a")
        pixels = seeing._streams["a"].pixels[1]
        drawn.append((float(pixels[0, 0, 0]), float(pixels[0, -1, -1])))
    # the slow one has its turn when it is further off than the other's 3 (step 4), or when the other rests (5)
    assert drawn == [(103, 100), (100, 100), (103, 100), (103, 104), (103, 105), (100, 105), (103, 105)]


def test_the_tile_at_the_gripper_comes_first_and_unknown_points_mean_change():
    encoder = make(1, (1, 2, 4))
    rules = {"tiles": 2, "choose": "gripper", "fill": "coarse"}
    for point, expected in (
        ((0.9, 0.1), {(1, 0, 1), (2, 0, 3)}),  # x to the right, y downwards; both sizes hold it
        ((0.1, 0.6), {(1, 1, 0), (2, 2, 0)}),
        ((-3.0, 5.0), {(1, 1, 0), (2, 3, 0)}),  # outside: the nearest
        ((np.nan, np.nan), {(1, 0, 0), (2, 3, 2)}),  # where most has changed
    ):
        seeing = select(encoder, rules)
        assert isinstance(seeing, SelectiveEncoder)
        image = np.full((16, 16, 3), 50, np.uint8)
        seeing.encode(image[None], "a", np.array([point]))
        before = list(seeing._streams["a"].held)
        image += 1
        image[:8, :8] += 100
        image[12:, 8:12] += 200
        seeing.encode(image[None], "a", np.array([point]))
        pairs = zip(seeing._places, before, seeing._streams["a"].held, strict=True)
        assert {place for place, old, new in pairs if old is not new} == {(0, 0, 0), *expected}


@pytest.mark.parametrize("fill", ["last", "coarse"])
def test_what_stands_for_a_tile_that_is_not_computed(fill):
    encoder = make(4)
    seeing = select(encoder, {"tiles": 0, "fill": fill})
    assert seeing is not encoder
    first, second = picture(encoder, 0), picture(encoder, 1)
    seeing.encode(first[None], "a")
    coarse, fine = seeing.encode(second[None], "a")[0].chunk(2, dim=1)
    old, new = encoder.encode(torch.from_numpy(np.stack([first, second])))
    torch.testing.assert_close(coarse, new.chunk(2, dim=1)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(fine, old.chunk(2, dim=1)[1] if fill == "last" else coarse, atol=1e-5, rtol=0)
    seeing = select(encoder, {"tiles": 0, "fill": fill, "warm_start": False})
    coarse, fine = seeing.encode(second[None], "a")[0].chunk(2, dim=1)
    assert torch.equal(fine, coarse)  # never computed: coarse for both


@pytest.mark.parametrize("tiles, expected", [(0.5, [0, 1, 0, 1]), (1.5, [1, 2, 1, 2]), (0.1, [0] * 9 + [1])])
def test_a_fraction_of_a_tile_is_a_tile_now_and_then(tiles, expected):
    encoder = make(1)
    seeing = select(encoder, {"tiles": tiles, "warm_start": False})
    fine = []
    for i in range(len(expected)):
        seeing.encode(picture(encoder, i)[None], "a")
        fine.append(seeing.counts["computed"] - 1)
    assert fine == expected


def test_streams_are_apart_and_can_be_forgotten():
    encoder = make(2)
    seeing = select(encoder, {"tiles": 0})
    assert isinstance(seeing, SelectiveEncoder)
    a, b = picture(encoder, 0)[None], picture(encoder, 1)[None]

    def computed(image, stream):
        seeing.encode(image, [stream])
        return seeing.counts["computed"]

    assert [computed(a, ("x", 0)), computed(b, ("x", 1)), computed(b, ("x", 0))] == [5, 5, 1]
    assert [computed(a, ("x", 1)), computed(b, ("x", 0))] == [1, 0]
    seeing.reset([("x", 0), ("never", 0)])
    assert [computed(a, ("x", 0)), computed(b, ("x", 1)), computed(b, ("x", 1))] == [5, 1, 0]
    seeing.reset()
    assert [computed(a, ("x", 0)), computed(b, ("x", 1))] == [5, 5]


@pytest.mark.parametrize("choose", ["change", "coarse"])
def test_milliseconds_become_tiles(monkeypatch, choose):
    """A clock that only the model moves."""
    now, cost = [0.0], [0.002]
    monkeypatch.setattr(selective.time, "perf_counter", lambda: now[0])
    encoder = make(1)
    model = encoder._model

    def slow(x):
        now[0] += cost[0] * len(x)
        return model(x)

    monkeypatch.setattr(encoder, "_model", slow)
    seeing = select(encoder, {"milliseconds": 7.0, "warm_start": False, "choose": choose})
    seed = iter(range(1000))

    def fine(calls=1):
        for _ in range(calls):
            seeing.encode(picture(encoder, next(seed))[None], "a")
        return seeing.counts["computed"] - 1

    # 7 ms hold one coarse and two fine tiles; at first nothing is known, unless the coarse tiles ran on their own
    assert [fine(), fine(), fine()] == [2 if choose == "coarse" else 0, 2, 2]
    cost[0] = 0.0017
    assert fine(40) == 3  # four tiles in all
    cost[0] = 0.040
    assert fine(40) == 0
    cost[0] = 0.001
    assert fine(40) == 4  # all


def test_time_outside_the_model_counts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(selective.time, "perf_counter", lambda: now[0])
    encoder = make(1)
    model, see = encoder._model, SelectiveEncoder._see

    def slow(x):
        now[0] += 0.001 * len(x)
        return model(x)

    def slow_see(self, *args):
        now[0] += 0.005
        return see(self, *args)

    monkeypatch.setattr(encoder, "_model", slow)
    monkeypatch.setattr(SelectiveEncoder, "_see", slow_see)
    seeing = select(encoder, {"milliseconds": 8.5})
    for seed in range(3):
        seeing.encode(np.stack([picture(encoder, seed), picture(encoder, seed + 9)]), "ab")
    assert seeing.counts["computed"] == 2 * 3  # 8.5 - 5 = 3.5 ms a frame


def test_a_failure_inside_the_model_leaves_no_half_memory(monkeypatch):
    encoder = make(2)
    seeing = select(encoder, {"tiles": 1})
    image = picture(encoder, 0)[None]
    want = seeing.encode(image, "a")
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "_model", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            seeing.encode(255 - image, "a")
    assert torch.equal(seeing.encode(image, "a"), want)
    assert seeing.counts["computed"] == 5  # a first frame again


def test_a_selective_encoder_has_the_encoders_facts():
    encoder = make(2, name="small", pool="mean")
    seeing = select(encoder, {"tiles": 2, "milliseconds": None, "fill": "coarse"})
    assert isinstance(seeing, SelectiveEncoder)
    for fact in (
        "fingerprint", "dim", "grid", "num_tokens", "sizes", "image_size", "tile", "pool", "name",
        "num_parameters", "gflops_per_image",
    ):  # fmt: skip
        assert getattr(seeing, fact) == getattr(encoder, fact)
    assert seeing.report()["computed_per_frame"] == 0
    seeing.encode(np.stack([picture(encoder, i) for i in range(4)]), "aaaa")
    assert seeing.report() == {
        "tiles": 2, "milliseconds": None, "choose": "coarse", "fill": "coarse", "warm_start": True, "frames": 4,
        "tiles_per_frame": 5, "computed_per_frame": 3.5, "reused_per_frame": 0.0, "filled_per_frame": 1.5,
    }  # fmt: skip


def test_no_budget_means_the_encoder_itself():
    encoder = make(1)
    assert select(encoder, None) is encoder
    assert select(encoder, {"tiles": None, "milliseconds": None, "choose": "coarse"}) is encoder


@pytest.mark.parametrize(
    "values, words",
    [
        (
            {"tiles": 2, "milliseconds": 5},
            "found tiles 2 and milliseconds 5, expected exactly one of the two",
        ),
        ({"tiles": -1}, "selective.tiles: found -1, expected a number of at least 0"),
        ({"tiles": True}, "selective.tiles: found True, expected a number"),
        ({"milliseconds": float("nan")}, "selective.milliseconds: found nan, expected a number"),
        ({"tiles": "two"}, "selective.tiles: found 'two'"),
        ({"tiles": 1, "choose": "motion"}, "choose: found 'motion', expected one of change, coarse, gripper"),
        ({"tiles": 1, "fill": None}, "selective.fill: found None, expected one of last, coarse"),
        ({"tiles": 1, "warm_start": 1}, "selective.warm_start: found 1, expected true or false"),
        ({"tile": 1}, "selective.tile: unknown key; nearest: tiles"),
    ],
)
def test_wrong_settings_are_refused_in_a_line(values, words):
    with pytest.raises(UserError, match=words) as caught:
        select(make(1), values)
    assert "\n" not in str(caught.value)


def test_settings_need_a_budget():
    with pytest.raises(UserError, match="found tiles None and milliseconds None"):
        Selective()


def test_wrong_input_is_refused():
    with pytest.raises(UserError, match=r"the encoder has 1 size \(4\), expected at least 2"):
        select(make(1, (1,)), {"tiles": 1})
    encoder = make(1)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    seeing = select(encoder, {"tiles": 1})
    with pytest.raises(UserError, match="found 3 streams for 2 images"):
        seeing.encode(images, "abc")
    with pytest.raises(UserError, match=r"points of shape \(2, 3\), expected \(2, 2\)"):
        seeing.encode(images, "ab", np.zeros((2, 3)))
    with pytest.raises(UserError, match="expected images uint8"):
        seeing.encode(images.astype(np.float32), "ab")
    with pytest.raises(UserError, match="gripper needs points"):
        select(encoder, {"tiles": 1, "choose": "gripper"}).encode(images, "ab")
    assert seeing.encode(images[:0], []).shape == (0, encoder.num_tokens, encoder.dim)


class Means(nn.Module):
    """One token a tile: its mean colour. Exact, whatever batch a tile is in."""

    def forward(self, x):
        return x.mean((2, 3))[:, None]


def test_any_module_will_do_and_frames_may_be_larger():
    encoder = S2Encoder(Means(), (4, 8), tile=4, mean=(0, 0, 0), std=(1, 1, 1))
    seeing = select(encoder, {"tiles": 4})
    image = np.zeros((24, 24, 3), np.uint8)
    image[:12, 12:] = 255
    want = encoder.encode(torch.from_numpy(image)[None])
    assert torch.equal(seeing.encode(image[None], "a"), want)
    assert want[0, 0].tolist() == pytest.approx([0.25] * 6)  # 1 token: both sizes see a quarter of white


class Colours(torch.nn.Module):
    """Tokens are mean colours: what a token is follows from its place alone."""

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)


def wide_encoder() -> S2Encoder:
    return S2Encoder(Colours(), (8, 16), tile=8, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.mark.parametrize("shape", [(16, 28), (28, 16), (16, 32)])
def test_frames_that_are_not_square(shape):
    """All tiles are the encoder; what is the same is not computed again; where tiles overlap, a change is of both."""
    encoder = wide_encoder()
    seeing = select(encoder, {"tiles": 100})
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    torch.testing.assert_close(seeing.encode(images, ["a", "b"]), encoder.encode(images))
    seeing.encode(images, ["a", "b"])
    assert seeing.counts["computed"] == 0
    changed = images.copy()
    changed[0, shape[0] // 2 - 1 :, shape[1] // 2 - 1 :] ^= 128
    torch.testing.assert_close(seeing.encode(changed, ["a", "b"]), encoder.encode(changed))
    assert 0 < seeing.counts["computed"] < 2 * encoder.layout_of(*shape).tiles
    square = images[:, :16, :16]  # another shape is another stream
    torch.testing.assert_close(seeing.encode(square, ["a", "b"]), encoder.encode(square))


@pytest.mark.parametrize("shape", [(16, 32), (32, 16), (16, 24), (16, 16)])
def test_coarse_tokens_stand_where_they_lie(shape):
    """With mean colours, the coarse tokens under the fine ones are, pooled to the grid, the coarse map itself."""
    encoder = wide_encoder()
    seeing = select(encoder, {"tiles": 0, "fill": "coarse", "warm_start": False})
    image = np.random.default_rng(1).integers(0, 256, (1, *shape, 3), dtype=np.uint8)
    tokens = seeing.encode(image, ["a"])
    torch.testing.assert_close(tokens[..., 3:], tokens[..., :3])
    torch.testing.assert_close(tokens[..., :3], encoder.encode(image)[..., :3])
