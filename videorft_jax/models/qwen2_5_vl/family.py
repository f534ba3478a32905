"""What Qwen2.5-VL answers to the questions of `models.family.Family`."""

from videorft_jax.models.family import Family
from videorft_jax.models.geometry import WINDOWED_14
from videorft_jax.models.qwen2_5_vl import config, hf_names
from videorft_jax.models.qwen2_5_vl.model import build

FAMILY = Family(
    title="Qwen2.5-VL",
    geometry=WINDOWED_14,
    parse_config=config.parse_config,
    hf_values=config.hf_values,
    tiny_values=config.tiny_values,
    demo_values=config.demo_values,
    sizes=tuple(config.SIZES),
    build=build,
    names=hf_names.NAMES,
    leaves_of=hf_names.leaves_of,
    old_name=hf_names.old_name,
    new_name=hf_names.new_name,
    # Versions 5.3 to 5.17 multiply a clip's place by its interval, or go on behind it otherwise.
    position_rules=(((4, 52), "hf4"), ((5, 3), None), ((5, 18), "hf5")),
)
