"""Pixels to points in space, against a pinhole camera written down a second time."""

import json

import numpy as np
import pytest
import torch

from s2robot.common.paths import shipped_demos
from s2robot.demos.store import EpisodeStore
from s2robot.policies import ChunkPolicy, PolicyError, PolicySpec, load_checkpoint, save_checkpoint
from s2robot.policies.rays import UNIT, Rays, with_geometry
from tests.policies.conftest import D, K, N

SIDE = 8
CONTRACT = {
    "encoder": {"name": "e", "fingerprint": "f"}, "cameras": ["hand", "left"], "robot": "xarm7", "joint_names": ["j"] * 7,
    "action_frame": "a", "rate_hz": 10, "dataset": {"fingerprint": "d"},
}  # fmt: skip


@pytest.fixture(scope="module")
def geometry():
    return EpisodeStore.open(shipped_demos("xarm7_cube")).attrs["camera_geometry"]


def place_of(camera, point):
    """Where a pinhole camera shows a point, on a grid of SIDE tokens whose outermost centres are -1 and 1."""
    w, *v = camera["quaternion"]
    to_camera = np.asarray(point) - camera["position"]
    v = -np.asarray(v)  # the inverse turn, by Rodrigues' formula of quaternions
    seen = to_camera + 2 * np.cross(v, np.cross(v, to_camera) + w * to_camera)
    across = seen[:2] / -seen[2] / np.tan(np.radians(camera["fovy"] / 2))  # -1..1 over the picture, y up
    return across * [1, -1] * SIDE / (SIDE - 1)


def test_rays_of_two_cameras_meet_where_the_thing_is(geometry):
    rays = Rays(("hand", "left", "right"), geometry, [(SIDE, SIDE)] * 3)
    points = np.array([[0.0, 0.0, 0.82], [0.1, -0.15, 0.9], [-0.12, 0.16, 0.85]])
    places = torch.zeros(2, 3, len(points), 2)
    for i, name in enumerate(("left", "right"), 1):
        places[:, i] = torch.tensor(np.stack([place_of(geometry[name], p) for p in points]))
    read = rays(places)  # (2, 3, 3, 4)
    for camera in (1, 2):
        found = read[0, camera, :, :3] * UNIT + rays.middle
        np.testing.assert_allclose(
            found, points, atol=1e-3
        )  # the pull to the middle costs tenths of a millimetre
        assert (read[0, camera, :, 3] * UNIT < 2e-3).all()  # both rays pass through it
    torch.testing.assert_close(read[1], read[0])


def test_rays_that_miss_each_other_say_by_how_much(geometry):
    rays = Rays(("left", "right"), geometry, [(SIDE, SIDE)] * 2)
    places = torch.tensor(
        np.stack([place_of(geometry[n], p) for n, p in (("left", [0, 0, 0.82]), ("right", [0, 0, 0.92]))])
    )
    by = rays(places[None, :, None].float())[0, :, 0, 3] * UNIT
    np.testing.assert_allclose(by[0], by[1], rtol=0.05)  # the nearest point lies half way
    assert 0.01 < by[0] < 0.05


def test_a_moving_camera_reads_directions_and_one_still_camera_a_point_on_its_ray(geometry):
    rays = Rays(("hand", "left"), geometry, [(SIDE, SIDE)] * 2)
    places = torch.rand(4, 2, 5, 2) * 2 - 1
    hand, left = rays(places).unbind(1)
    slope = np.tan(np.radians(37.5)) * (SIDE - 1) / SIDE
    wanted = torch.stack([places[:, 0, :, 0] * slope, -places[:, 0, :, 1] * slope, -torch.ones(4, 5)], -1)
    torch.testing.assert_close(hand[..., :3], wanted / wanted.norm(dim=-1, keepdim=True))
    assert (hand[..., 3] == 0).all() and left.isfinite().all()
    assert (left[..., 3] * UNIT < 0.02).all()


@pytest.mark.parametrize(
    ("size", "shape", "slope"),
    [
        ([120, 160], (8, 8), [0.875, 0.875]),  # the square in the middle of a wide picture, and of a tall one
        ([160, 120], (8, 8), [0.75 * 0.875] * 2),
        ([120, 160], (6, 8), [4 / 3 * 0.875, 5 / 6]),  # all of a picture of 3:4
        (None, (8, 8), [0.875, 0.875]),
    ],
)
def test_slopes_follow_from_what_is_shown(size, shape, slope):
    camera = {"fovy": 90.0, "size": size, "body": "world", "position": [0, 0, 0], "quaternion": [1, 0, 0, 0]}
    torch.testing.assert_close(Rays(("a",), {"a": camera}, [shape]).slope, torch.tensor([slope]))


def test_gradients_reach_the_places(geometry):
    places = torch.zeros(1, 3, 2, 2, requires_grad=True)
    Rays(("hand", "left", "right"), geometry, [(SIDE, SIDE)] * 3)(places).sum().backward()
    assert places.grad.isfinite().all() and places.grad.abs().min() > 0


@pytest.mark.parametrize("members", [1, 2])
def test_a_policy_with_points_learns_acts_and_travels(make_policy, make_batch, geometry, tmp_path, members):
    plain = make_policy()
    policy = make_policy(members=members, pooling={"points": True, "geometry": geometry})
    before, after = (p.network.pooling.pools[0].out.in_features for p in (plain, policy))
    assert after == before + 4 * 3  # 4 numbers of each of the 3 heat maps
    loss, _ = policy.train()(make_batch(policy))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())
    save_checkpoint(tmp_path / "c", policy.eval(), CONTRACT)
    again, _ = load_checkpoint(tmp_path / "c")
    features = torch.randn(2, 1, 2, N, D)
    assert torch.equal(
        again.plan(features, torch.zeros(2, 1, 8)), policy.plan(features, torch.zeros(2, 1, 8))
    )


def test_the_config_takes_the_geometry_of_the_demos_or_leaves_no_trace(geometry):
    config = {"cameras": ["left", "hand"], "pooling": {"kind": "spatial_softmax", "points": True}}
    filled = with_geometry(config, geometry)["pooling"]
    assert list(filled["geometry"]) == ["left", "hand"] and filled["geometry"]["left"]["fovy"] == 45.0
    json.dumps(filled, allow_nan=False)
    assert with_geometry({"pooling": {"points": False}}, geometry) == {"pooling": {}}


@pytest.mark.parametrize(
    ("pooling", "told"),
    [
        ({"points": True}, "geometry of camera 'hand' has no fovy"),
        ({"points": True, "geometry": {"hand": {"fovy": 45.0, "body": "world"}}}, "'hand' has no position"),
        ({"points": True, "kind": "mean"}, "needs pooling.kind spatial_softmax, found 'mean'"),
    ],
)
def test_what_points_lack_is_one_line(pooling, told):
    with pytest.raises(PolicyError, match=told):
        ChunkPolicy(PolicySpec(cameras=("hand",), dim=D, tokens=N, chunk=K, pooling=pooling))
