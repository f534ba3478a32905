"""GRPO of Qwen3-VL-8B on VideoRFT-RL-310K with the semantic reward.

videorft grpo --config=configs/grpo_qwen3vl_8b.py --workdir=runs/grpo_qwen3vl_8b \
    --config.model.init_from=runs/sft_qwen3vl_8b/hf --config.data.records=VideoRFT-RL-310K.jsonl \
    --config.reward.siglip=siglip-so400m-patch14-384
"""

import grpo_7b


def get_config():
    config = grpo_7b.get_config()
    config.name = "grpo_qwen3vl_8b"
    config.media.patch_size = 16
    return config
