"""Augmented copies: what is disturbed, what is encoded, and what training does with it."""

import numpy as np
import pytest
import torch

from s2robot import pipeline
from s2robot.core.errors import UserError
from s2robot.demos.mix import Mix
from s2robot.demos.replay import episode_frames
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.augment import augmented
from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import S2Encoder
from s2robot.features import FeaturesSettings, encode_demos
from tests.configs import composed

CAMERAS = ("hand", "left")


def test_every_frame_is_disturbed_in_its_own_way():
    frames = [np.full((40, 16, 24, 3), 99, np.uint8), np.full((3, 8, 8, 3), 200, np.uint8)]
    once, again, other = (augmented(lambda: frames, (7, copy)) for copy in (1, 1, 2))
    for seen, out, same, different in zip(frames, once, again, other, strict=True):
        assert out.shape == seen.shape and out.dtype == np.uint8
        assert np.array_equal(out, same) and not np.array_equal(out, different)
        assert len({frame.tobytes() for frame in [*seen[:1], *out]}) == len(out) + 1
    assert 60 < np.mean([frame.mean() for frame in once[0]]) < 120 and (frames[0] == 99).all()


def test_copies_follow_the_features_of_all_datasets(recorded, tiny_encoder, tmp_path):
    store = EpisodeStore.open(recorded)
    encoder = build_encoder({"name": "mvp-tiny", "checkpoint": str(tiny_encoder)})
    settings = FeaturesSettings(cache=str(tmp_path), workers=1, threads=1, augment=2)
    chosen, rows = np.array([0, 2]), store.episode_slice(2)
    features, caches = encode_demos(store, encoder, CAMERAS, settings, chosen)
    plain, _ = encode_demos(store, encoder, CAMERAS, settings.replace(augment=0), chosen)
    assert len({cache.path for cache in caches}) == 3 and len(features) == 3 * store.num_steps
    assert np.array_equal(features[rows], plain[rows])
    frames = episode_frames(recorded, 2, CAMERAS, encoder.image_size)
    for copy in (1, 2):
        expected = encoder.encode_cameras(augmented(lambda: frames, (2, copy))).half()  # noqa: B023
        own = slice(rows.start + copy * store.num_steps, rows.stop + copy * store.num_steps)
        assert torch.equal(torch.from_numpy(features[own]), expected)
    mixed, _ = encode_demos(Mix([store], [1]), encoder, CAMERAS, settings, chosen)  # from the same caches
    assert np.array_equal(mixed[own], features[own])


def test_frozen_features_read_by_attention_are_augmented_by_default():
    for word, copies in (("s2=s2", 1), ("policy=rnn", 0), ("encoder=resnet18", 0), ("features.augment=3", 3)):
        assert pipeline.read_task(composed("train", word)).features.augment == copies


class Drawing(torch.nn.Module):
    def forward(self, x):
        return torch.rand_like(x)[:, :, ::4, ::4].flatten(2).mT


def test_model_that_draws_is_rejected_before_encoding(recorded, tmp_path):
    own = {"tile": (8, 8), "num_prefix_tokens": 0, "mean": (0, 0, 0), "std": (1, 1, 1)}
    encoder = S2Encoder(Drawing(), [8], name="drawing", **own)
    with pytest.raises(
        UserError,
        match=r"drawing: expected the same features for the same frames, got a difference of up to 0\.\d+",
    ):
        encode_demos(EpisodeStore.open(recorded), encoder, CAMERAS, FeaturesSettings(cache=str(tmp_path)))
    assert not list(tmp_path.iterdir())
