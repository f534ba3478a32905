"""A run of GRPO on eight devices that is stopped and goes on with another `rollout.mesh`, by the
commands of a user, who need not allow the change."""

import numpy as np
import pytest
from grpo_place import STEPS, Place, completions, curve
from tiny_run import finish, read_arrays

TRAINING = ("--config.mesh.data=1", "--config.mesh.fsdp=8", "--config.checkpoint.every=1")
MESHES = ("8,1,1", "2,1,4", "1,1,8", "1,4,2")
KINDS = {
    "weights": (),
    "adapters": ("--config.lora.rank=4", "--config.optim.lr=0.01"),
}
# Figures that follow the division of the completions over devices, or that compare the rollout's
# own log-probabilities with the trainer's.
OF_ROLLOUT = ("rollout/finished", "rollout/compactions", "sampler_gap")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("meshes"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_step_on_another_rollout_mesh_is_the_same_run(place, kind):
    """The run is stopped after each of its four steps. Where all weights train, the update lies on
    the training's mesh in both runs and reads only tokens of the rollout, so that every weight is
    the same bits. With adapters the visual tokens of the frozen tower are made once, on the
    rollout's mesh, whose sums are of another order: 1e-5, as between two meshes of the training."""
    flags = (*TRAINING, *KINDS[kind])
    near = {"rtol": 1e-4, "atol": 1e-5} if kind == "adapters" else {"rtol": 0, "atol": 0}
    whole = place.run(f"{kind}_whole", *flags, "--config.rollout.mesh=", devices=8)
    for number, mesh in enumerate(MESHES, 1):
        more = (f"--config.rollout.mesh={mesh}", f"--config.train.max_steps={number}")
        code, text = finish(place.start(f"{kind}_stopped", *flags, *more, devices=8))
        assert code == 0, text
        if number > 1:
            assert f"rollout.mesh was '{MESHES[number - 2]}' and is '{mesh}'" in text
    stopped = place.folder / f"{kind}_stopped"
    told = [[(x["problem_id"], x["completion"]) for x in completions(d)] for d in (stopped, whole)]
    assert told[0] == told[1]
    for line, wanted in zip(curve(stopped), curve(whole), strict=True):
        for name in wanted.keys() | line.keys():
            if not name.startswith(OF_ROLLOUT):
                np.testing.assert_allclose(line[name], wanted[name], **near, err_msg=name)
        assert line["sampler_gap_max"] < 1e-5
    found, expected = (read_arrays(folder, STEPS) for folder in (stopped, whole))
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], **near, err_msg=path)
