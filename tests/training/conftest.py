"""The model and the checkpoints that several files of these tests read; none writes to them."""

import pytest
from trained_place import TrainedPlace


@pytest.fixture(scope="session")
def trained_place(tmp_path_factory):
    return TrainedPlace(tmp_path_factory.mktemp("trained"))
