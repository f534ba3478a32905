"""One tiny model, data set and run, made once for all tests of the first hour."""

import pytest
from first_hour_place import FirstHour


@pytest.fixture(scope="session")
def hour(tmp_path_factory):
    place = FirstHour(tmp_path_factory.mktemp("first_hour"))
    yield place
    place.end_all()
