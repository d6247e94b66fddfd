"""Episodes shared by the training tests."""

import pytest

from tests.s2robot.training.small import make_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("training") / "a.zarr")
