"""What Qwen3-VL answers to the questions of `models.family.Family`."""

from videorft_jax.models.family import Family
from videorft_jax.models.geometry import PLAIN_16
from videorft_jax.models.qwen3_vl import hf_names, sizes
from videorft_jax.models.qwen3_vl.config import parse_config
from videorft_jax.models.qwen3_vl.model import build

FAMILY = Family(
    title="Qwen3-VL",
    geometry=PLAIN_16,
    parse_config=parse_config,
    hf_values=sizes.hf_values,
    tiny_values=sizes.tiny_values,
    demo_values=sizes.demo_values,
    sizes=tuple(sizes.SIZES),
    build=build,
    names=hf_names.NAMES,
    leaves_of=hf_names.leaves_of,
    old_name=hf_names.old_name,
    new_name=hf_names.new_name,
)
