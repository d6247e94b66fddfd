"""The pictures of a training: which there are, and that they say what the rows do."""

from math import nan

import numpy as np
import pytest

from s2robot.common.errors import UserError
from s2robot.evaluation.records import wilson
from s2robot.evaluation.training_plot import training_plot
from s2robot.reporting.style import figure_svg


def rows_of(count: int, **more) -> list[dict]:
    return [
        {
            "step": 10 * i, "train_loss": 1 / i, "train_joint_loss": 0.6 / i, "train_gripper_loss": 0.4 / i,
            "train_joint_error_rad": 0.02 / i, "train_gripper_accuracy": 1 - 0.1 / i, "train_kl": 0.5,
            "grad_norm": 1.0, "lr": 1e-3, "steps_per_s": 50.0, "memory_mb": 900.0, "seconds": 0.2, **more,
        }
        for i in range(1, count + 1)
    ]  # fmt: skip


def panels(figure) -> dict:
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.axison}


def test_every_column_has_its_picture():
    found = panels(training_plot(rows_of(5)))
    assert list(found) == [
        "Loss", "Parts of the loss", "Error of a joint's step (mrad)", "Gripper decided wrongly (%)", "Kl",
        "Gradient norm, before clipping", "Learning rate", "Steps a second", "Memory of the process at most (MB)",
    ]  # fmt: skip
    np.testing.assert_allclose(
        found["Error of a joint's step (mrad)"].lines[0].get_ydata(), 20 / np.arange(1, 6)
    )
    np.testing.assert_allclose(
        found["Gripper decided wrongly (%)"].lines[0].get_ydata(), 10 / np.arange(1, 6)
    )
    assert found["Loss"].get_yscale() == "log" and found["Loss"].get_legend() is None
    assert [t.get_text() for t in found["Parts of the loss"].get_legend().get_texts()] == ["joint", "gripper"]
    assert found["Memory of the process at most (MB)"].get_ylim()[0] == 0


def test_held_out_demos_are_a_line_of_their_own():
    rows = rows_of(5, val_loss=0.3, val_joint_error=0.007, val_joint_loss=0.1)
    found = panels(training_plot(rows))
    for title in ("Loss", "Error of a joint's step (mrad)"):
        words = [text.get_text() for text in found[title].get_legend().get_texts()]
        assert words == ["trained on", "held out"], title
    assert set(found["Error of a joint's step (mrad)"].lines[1].get_ydata()) == {7.0}
    words = [text.get_text() for text in found["Parts of the loss"].get_legend().get_texts()]
    assert words == ["joint", "gripper", "held out"]


def test_tries_have_their_intervals():
    rows = rows_of(4)
    rows[1] |= {"success": 0.25, "tried": 16}
    rows[3] |= {"success": 1.0, "tried": 16}
    line, *bands = panels(training_plot(rows))["Success of a try (%)"].lines
    assert line.get_xydata().tolist() == [[20, 25], [40, 100]]
    assert [list(band.get_ydata()) for band in bands] == [[100 * v for v in wilson(n, 16)] for n in (4, 16)]


def test_any_rows_make_a_picture():
    for rows in (
        [{"step": 1, "train_loss": 0.0, "val_loss": None}],  # no logarithm of zero
        [{"step": 1, "train_loss": 0.1, "val_loss": nan}],
        [{"epoch": 1, "train_loss": 0.1, "lr": 0.0}],  # version 0.1
        [{"step": 1, "val_loss": nan}],
    ):
        figure_svg(training_plot(rows), "training")
    assert training_plot([{"epoch": 1, "train_loss": 0.1}]).axes[0].get_xlabel() == "epoch"
    with pytest.raises(UserError, match="train_loss"):
        training_plot([{"step": 1, "lr": 1.0}])


def test_other_parts_have_pictures_of_their_own():
    rows = [{"step": 1, "train_loss": 1.0, "train_position_loss": 0.5, "train_position_error": 0.02,
             "train_left_claw_accuracy": 0.75, "val_position_error": 0.03}]  # fmt: skip
    found = panels(training_plot(rows))
    assert list(found) == ["Loss", "Parts of the loss", "Error of position", "Left claw decided wrongly (%)"]
    assert [line.get_ydata()[0] for line in found["Error of position"].lines] == [0.02, 0.03]
    assert found["Left claw decided wrongly (%)"].lines[0].get_ydata()[0] == 25
