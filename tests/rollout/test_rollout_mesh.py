"""What `rollout.mesh` may say, and what is answered where it cannot work."""

import jax
import jax.numpy as jnp
import pytest
from tiny_run import make_config, make_data, make_model, sft_options

from videorft_jax.commands.grpo import grpo
from videorft_jax.models import family
from videorft_jax.models.family import published_config
from videorft_jax.models.qwen2_5_vl.config import hf_values, parse_config, tiny_values
from videorft_jax.parallel import sharding
from videorft_jax.rollout.heads import abstract_widened, count_copies
from videorft_jax.rollout.mesh import AUTO, check_sizes, parse_sizes, reshape
from videorft_jax.rollout.parameters import Preparation
from videorft_jax.training.changes import decides_learning


@pytest.fixture(scope="module")
def training():
    return sharding.make_mesh(fsdp=8)


def test_texts():
    assert parse_sizes("") is None
    assert parse_sizes("auto") == AUTO
    assert parse_sizes("1,2,4") == (1, 2, 4)
    for text in ("1,2", "1,2,4,1", "a,b,c", "0,2,4", "-1,2,4", "2x2x2", "1,²,4"):
        with pytest.raises(ValueError, match="give the sizes of data, fsdp and tensor") as caught:
            parse_sizes(text)
        assert "\n" not in str(caught.value)


def test_devices_keep_their_order(training):
    other = reshape(training, (2, 1, 4))
    assert dict(other.shape) == {"data": 2, "fsdp": 1, "tensor": 4}
    assert list(other.devices.flat) == list(training.devices.flat) == jax.devices()
    assert reshape(training, AUTO) is training
    assert reshape(training, None) is reshape(training, (1, 8, 1)) is training


@pytest.mark.parametrize(
    ("sizes", "rows", "said"),
    [
        ((1, 3, 4), 8, "these are 12 devices of 8; the nearest that works is 1,2,4"),
        ((2, 4, 1), 4, "data.rows=4 prompts do not divide over data [*] fsdp = 8; .* is 2,2,2"),
        ((8, 1, 1), 2, "data.rows=2 .*; the nearest that works is 2,1,4"),
        ((1, 8, 1), 1, "data.rows=1 prompts .* = 8; .* is 1,1,8"),
    ],
)
def test_a_mesh_that_cannot_work_is_answered_with_the_nearest(training, sizes, rows, said):
    """Published sizes: 7B has 4 heads of keys and values, 28 heads and 3,584 dims."""
    with pytest.raises(ValueError, match=f"^own: rollout.mesh=.*: {said}$") as caught:
        check_sizes("own", sizes, published_config("7b"), training, rows)
    assert "\n" not in str(caught.value)


def test_tensor_stays_within_a_slice(training):
    """As the training's own, over whose slices only data are split."""
    model = published_config("7b")
    for sizes in ((1, 2, 4), (2, 4, 1)):
        check_sizes("own", sizes, model, training, 8, slices=2)
    said = "tensor = 8 does not divide the 4 devices of a slice; the nearest that works is 1,2,4$"
    with pytest.raises(ValueError, match=said):
        check_sizes("own", (1, 1, 8), model, training, 8, slices=2)


@pytest.mark.parametrize("sizes", [None, (1, 8, 1), (8, 1, 1), (1, 2, 4), (2, 1, 4), (1, 1, 8)])
def test_meshes_that_work(training, sizes):
    check_sizes("own", sizes, published_config("7b"), training, 8)


def test_heads_that_no_part_can_share(training):
    """Seven heads of keys divide over one part alone, or over multiples of seven."""
    odd = parse_config(hf_values("7b", num_key_value_heads=7))
    said = "tensor = 4 neither divides kv_heads = 7 nor is a multiple of it; .* that works is 1,8,1"
    with pytest.raises(ValueError, match=said):
        check_sizes("own", (1, 2, 4), odd, training, 8)
    with pytest.raises(ValueError, match="prompts .* = 8; leave rollout.mesh empty$"):
        check_sizes("own", (1, 8, 1), odd, training, 1)


NARROW = {
    "tower": {"vision_hidden_size": 36, "vision_num_heads": 3},
    "decoder": {
        "hidden_size": 20,
        "vision_out_hidden_size": 20,
        "num_attention_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 2]},
    },
}


@pytest.mark.parametrize("part", NARROW)
def test_no_weight_that_decoding_reads_is_split_over_fsdp(part):
    """Eight parts of fsdp divide neither a tower of 36 channels nor a decoder of 20 dims."""
    model, training = parse_config(tiny_values(**NARROW[part])), sharding.make_mesh(8, 1)
    for sizes in ((1, 8, 1), (1, 4, 2)):
        check_sizes("own", sizes, model, training, 8)
        prepared = Preparation(model, reshape(training, sizes), dtype=jnp.float32, int8=False)
        held = jax.tree.leaves(jax.tree.map(lambda leaf: leaf.spec, prepared.formats))
        assert not any("fsdp" in spec for spec in held)
        assert prepared.shapes


def test_is_refused_before_anything_is_measured_or_restored(tmp_path):
    records = make_data(tmp_path / "data", num_sft=8, num_rl=8)
    make_model(tmp_path / "model", records["sft"])
    options = sft_options(tmp_path / "model", records["rl"], rollout__mesh="1,3,4")
    config = make_config("grpo_7b", options, rewards=(("accuracy", 1.0),))
    with pytest.raises(ValueError, match="these are 12 devices of 8; .* that works is 1,2,4"):
        grpo(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", ["3b", "7b", "qwen3vl_8b"])
@pytest.mark.parametrize("tensor", [4, 8, 16])
def test_published_sizes_divide_over_sixteen_parts(size, tensor):
    """Queries of a group stay with their head of keys, and no part has more than one more."""
    model = published_config(size)
    whole = family.abstract_params(model)
    tree = abstract_widened(whole, model, tensor)
    assert tree["vision"] == whole["vision"]  # It is not split, whatever its heads.
    attn, text = tree["text"]["layers"]["attn"], model.text
    copies = count_copies(model, tensor)
    assert attn["k"].shape[2] == text.num_kv_heads * copies
    group = -(-text.num_heads // (text.num_kv_heads * copies))
    assert attn["q"].shape[2] == attn["o"].shape[1] == text.num_kv_heads * copies * group
    for keys, leaf in jax.tree_util.tree_leaves_with_path({"text": tree["text"]}):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        for size, axis in zip(leaf.shape, sharding.dims_of(path), strict=True):
            if axis and sharding.MESH_AXES[axis] == "tensor":
                assert size % tensor == 0, path


def test_a_run_may_go_on_on_another_mesh():
    assert not decides_learning("rollout.mesh")
    assert decides_learning("rollout.top_k")
