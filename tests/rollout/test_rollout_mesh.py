"""What `rollout.mesh` may say, and what is answered where it cannot work."""

import jax
import pytest

from videorft_jax.models.family import published_config
from videorft_jax.parallel import sharding
from videorft_jax.rollout.mesh import check_sizes, parse_sizes, reshape


@pytest.fixture(scope="module")
def training():
    return sharding.make_mesh(fsdp=8)


def test_texts():
    assert parse_sizes("") is None
    assert parse_sizes("1,2,4") == (1, 2, 4)
    for text in ("1,2", "1,2,4,1", "a,b,c", "0,2,4", "-1,2,4", "2x2x2"):
        with pytest.raises(ValueError, match="give the sizes of data, fsdp and tensor") as caught:
            parse_sizes(text)
        assert "\n" not in str(caught.value)


def test_devices_keep_their_order(training):
    other = reshape(training, (2, 1, 4))
    assert dict(other.shape) == {"data": 2, "fsdp": 1, "tensor": 4}
    assert list(other.devices.flat) == list(training.devices.flat) == jax.devices()
    assert reshape(training, None) is reshape(training, (1, 8, 1)) is training


@pytest.mark.parametrize(
    ("sizes", "rows", "said"),
    [
        ((1, 3, 4), 8, "these are 12 devices of 8; the nearest that works is 1,2,4"),
        ((1, 1, 8), 8, ".* does not divide kv_heads = 4 .*; the nearest that works is 1,2,4"),
        ((2, 4, 1), 4, "data.rows=4 prompts do not divide over data [*] fsdp = 8; .* is 2,2,2"),
        ((8, 1, 1), 2, "data.rows=2 .*; the nearest that works is 2,1,4"),
        ((1, 8, 1), 1, "data.rows=1 prompts .* = 8; leave rollout.mesh empty"),
    ],
)
def test_a_mesh_that_cannot_work_is_answered_with_the_nearest(training, sizes, rows, said):
    """Published sizes: 7B has 4 heads of keys and values, 28 heads and 3,584 dims."""
    with pytest.raises(ValueError, match=f"^own: rollout.mesh=.*: {said}$") as caught:
        check_sizes("own", sizes, published_config("7b"), training, rows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sizes", [None, (1, 8, 1), (8, 1, 1), (1, 2, 4), (2, 1, 4)])
def test_meshes_that_work(training, sizes):
    check_sizes("own", sizes, published_config("7b"), training, 8)
