"""`s2robot train` with values that no training can have."""

import pytest

from s2robot import cli


@pytest.mark.parametrize("verb", ["train", "run"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("steps=-1", "train.steps: found -1, expected 1 or more"),
        ("steps=0", "train.steps: found 0, expected 1 or more"),
        ("lr=-1", "train.lr: found -1.0, expected a number above 0"),
        ("batch_size=0", "train.batch_size: found 0, expected 1 or more"),
        ("tune.lora=4", "train.tune.lora: found 4 with train.tune.blocks=0, expected 1 or more blocks"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_done(verb, value, words, tmp_path, capsys):
    status = cli.main([verb, f"train.{value}", f"hydra.run.dir={tmp_path / 'run'}", "demos.path=none"])
    assert status == 2 and capsys.readouterr().err == f"s2robot {verb}: error: {words}\n"
