"""The model of these tests: its programs are compiled once for all of them."""

import pytest
from evaluation_place import EvaluationPlace

from videorft_jax.commands import evaluate


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return EvaluationPlace(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="session")
def rows(place):
    """Every record's completions, evaluated without a command."""
    return place.run(place.loader())


@pytest.fixture(scope="session")
def whole(place, tmp_path_factory):
    """The folder of an evaluation that was not interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "make_mesh", lambda _: place.mesh)
        patch.setattr(evaluate, "make_engine", lambda *_: place.engine)
        folder = tmp_path_factory.mktemp("whole") / "run"
        evaluate.evaluate(place.config(), str(folder))
    return folder


@pytest.fixture
def call(place, monkeypatch):
    """`videorft evaluate` on one device with the engine that is compiled already."""
    monkeypatch.setattr(evaluate, "make_mesh", lambda _: place.mesh)
    monkeypatch.setattr(evaluate, "make_engine", lambda *_: place.engine)

    def call(workdir, **changes):
        return evaluate.evaluate(place.config(**changes), str(workdir))

    return call
