"""Settings: defaults from one YAML file, frozen values, and one-line errors that name the key."""

import pickle
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from pydantic import Field

from s2robot.core.errors import UserError
from s2robot.core.files import configs_dir
from s2robot.core.settings import Settings, read
from s2robot.training.settings import TrainSettings, TuneSettings
from tests.errors import refuses


class Point(Settings, at="point"):
    x: int = 3
    y: int
    size: int | tuple[int, int] = 128
    sizes: tuple[int, ...] = Field((1,), min_length=1)
    any_: Any = Field(None, alias="any")


def test_defaults_come_from_the_yaml_file_and_config_equals_python():
    stored = yaml.safe_load((configs_dir() / "train/default.yaml").read_text())
    del stored["defaults"]
    assert TrainSettings().model_dump(mode="json", by_alias=True) == stored
    values = {"steps": 3, "from": "a", "tune": {"blocks": 2}, "strategy": "${other}"}
    node = OmegaConf.create({"train": values, "other": "x"})
    made = TrainSettings(steps=3, from_="a", tune={"blocks": 2}, strategy="x")
    assert read(TrainSettings, node.train) == made and made.tune.rate == TuneSettings().rate
    refuses(r"^arms\.a\.blocks: expected >= 0, got -1$", read, TuneSettings, {"blocks": -1}, "arms.a")


def test_values_are_frozen_and_copies_are_validated():
    made = TrainSettings(steps=5)
    with pytest.raises(ValueError):
        made.steps = 6
    assert made.replace(lr=0.5).steps == 5
    refuses(r"^train\.warmup: expected <= 1, got 2$", made.replace, warmup=2)


@pytest.mark.parametrize(
    ("cls", "values", "line"),
    [
        (TrainSettings, {"steps": 0}, "train.steps: expected >= 1, got 0"),
        (TrainSettings, {"steps": "many"}, "train.steps: expected an integer, got 'many'"),
        (TrainSettings, {"steps": True}, "train.steps: expected a number, got true"),
        (TrainSettings, {"lr": float("nan")}, "train.lr: expected a finite number, got nan"),
        (TrainSettings, {"step": 1}, "train.step: unknown key, expected steps"),
        (TrainSettings, {"tune": {"block": 1}}, "train.tune.block: unknown key, expected blocks"),
        (TrainSettings, {"tune": {"lora": 2}}, "train.tune.lora: expected 0 with train.tune.blocks=0, got 2"),
        (TrainSettings, {"tune": 3}, "train.tune: expected keys and values, got 3"),
        (TrainSettings, {"labels": "cnn"}, "train.labels: expected 'expert' or 'recorded', got 'cnn'"),
        (Point, {}, "point.y: expected a value, got nothing"),
        (Point, {"y": 1, "sizes": []}, "point.sizes: expected at least 1 values, got []"),
        (Point, {"y": 1, "sizes": [1, "b"]}, "point.sizes[1]: expected an integer, got 'b'"),
        (Point, {"y": 1, "size": "big"}, "point.size: expected an integer or a list, got 'big'"),
    ],
)
def test_wrong_value_is_one_error_line(cls, values, line):
    with pytest.raises(UserError) as python:
        cls(**values)
    with pytest.raises(UserError) as config:
        read(cls, OmegaConf.create({"node": values}).node)
    assert str(python.value) == str(config.value) == line


def test_settings_can_be_pickled_and_hashed():
    assert pickle.loads(pickle.dumps(Point(x=4, y=0))) == Point(x=4, y=0) != Point(y=0)
    assert hash(Point(y=0)) == hash(Point(x=3, y=0))


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (bool, "maybe", "key: expected true or false, got 'maybe'"),
        (dict[str, Any], [1], r"key: expected keys and values, got \[1\]"),
    ],
)
def test_single_values_are_validated_like_settings(kind, value, words):
    refuses(f"^{words}$", read, kind, value, "key")
    assert read(tuple[int, ...], [1, 2], "key") == (1, 2) and read(str, 7, "key") == "7"
