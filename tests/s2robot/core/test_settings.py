"""Settings: defaults from one YAML file, frozen values, and errors of one line that name the key."""

import pickle
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf
from pydantic import Field, model_validator

from s2robot.core import settings
from s2robot.core.errors import UserError
from s2robot.core.settings import Settings, from_yaml, invalid, read

YAML = """
defaults:
  - _self_
steps: 2000   # gradient steps
rate: 0.1     # learning rate
from: null    # a checkpoint
sizes: [1, 2] # two of them
kind: mlp     # mlp or gru
place: ${steps}
tune:
  blocks: 0   # blocks to train
  lora: 0     # their rank
"""


class Point(Settings, at="point"):
    x: int = 3
    y: int


@pytest.fixture
def classes(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/default.yaml").write_text(YAML)
    monkeypatch.setattr(settings, "CONFIGS", tmp_path)
    settings.yaml_defaults.cache_clear()

    class Tune(Settings, at="train.tune", file="train/default"):
        blocks: int = from_yaml(ge=0)
        lora: int = from_yaml(ge=0)

        @model_validator(mode="after")
        def _lora_needs_blocks(self):
            if self.lora and not self.blocks:
                raise invalid("lora", "0 with blocks=0", self.lora)
            return self

    class Train(Settings, at="train", file="train/default"):
        steps: int = from_yaml(ge=1)
        rate: float = from_yaml(gt=0, le=1)
        from_: str | None = from_yaml(alias="from")
        sizes: tuple[int, ...] = from_yaml(min_length=1)
        kind: Literal["mlp", "gru"] = from_yaml()
        size: int | tuple[int, int] = 128
        any_: Any = Field(None, alias="any")
        place: str = "here"
        tune: Tune = from_yaml()

    yield Train, Tune
    settings.yaml_defaults.cache_clear()


def test_defaults_are_those_of_the_file_and_a_config_gives_what_python_gives(classes):
    Train, Tune = classes
    made = Train()
    assert (made.steps, made.rate, made.from_, made.sizes, made.tune) == (2000, 0.1, None, (1, 2), Tune())
    assert made.place == "here"  # an interpolation belongs to the composed config
    given = {"steps": 3, "from": "a", "tune": {"blocks": 2}, "place": "${other}"}
    node = OmegaConf.create({"train": given, "other": "x"})
    assert read(Train, node.train) == Train(steps=3, from_="a", tune={"blocks": 2}, place="x")
    assert Train(tune={"blocks": 2}).tune.lora == 0
    with pytest.raises(UserError, match=r"^arms\.a\.blocks: expected >= 0, got -1$"):
        read(Tune, {"blocks": -1}, "arms.a")


def test_values_are_frozen_and_a_copy_is_validated(classes):
    made = classes[0](steps=5)
    with pytest.raises(ValueError):
        made.steps = 6
    assert made.replace(rate=0.5).steps == 5
    with pytest.raises(UserError, match=r"^train\.rate: expected <= 1, got 2$"):
        made.replace(rate=2)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"steps": 0}, "train.steps: expected >= 1, got 0"),
        ({"steps": "many"}, "train.steps: expected an integer, got 'many'"),
        ({"steps": True}, "train.steps: expected a number, got true"),
        ({"rate": float("nan")}, "train.rate: expected a finite number, got nan"),
        ({"step": 1}, "train.step: unknown key, expected steps"),
        ({"tune": {"block": 1}}, "train.tune.block: unknown key, expected blocks"),
        ({"tune": {"blocks": -1}}, "train.tune.blocks: expected >= 0, got -1"),
        ({"tune": {"lora": 2}}, "train.tune.lora: expected 0 with blocks=0, got 2"),
        ({"tune": 3}, "train.tune: expected keys and values, got 3"),
        ({"sizes": []}, "train.sizes: expected at least 1 values, got []"),
        ({"sizes": [1, "b"]}, "train.sizes[1]: expected an integer, got 'b'"),
        ({"kind": "cnn"}, "train.kind: expected 'mlp' or 'gru', got 'cnn'"),
        ({"size": "big"}, "train.size: expected an integer or a list, got 'big'"),
    ],
)
def test_a_wrong_value_is_one_line(classes, given, line):
    Train, _ = classes
    with pytest.raises(UserError) as python:
        Train(**given)
    with pytest.raises(UserError) as config:
        read(Train, OmegaConf.create({"train": given}).train)
    assert str(python.value) == str(config.value) == line


def test_settings_go_to_other_processes_and_need_a_value_without_a_default():
    assert pickle.loads(pickle.dumps(Point(x=4, y=0))) == Point(x=4, y=0) != Point(y=0)
    assert hash(Point(y=0)) == hash(Point(x=3, y=0))
    with pytest.raises(UserError, match=r"^point\.y: expected a value, got nothing$"):
        Point()
