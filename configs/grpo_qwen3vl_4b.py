"""GRPO of Qwen3-VL-4B on VideoRFT-RL-310K with the semantic reward.

videorft grpo --config=configs/grpo_qwen3vl_4b.py --workdir=runs/grpo_qwen3vl_4b \
    --config.model.init_from=runs/sft_qwen3vl_4b/hf --config.data.records=VideoRFT-RL-310K.jsonl \
    --config.reward.siglip=siglip-so400m-patch14-384
"""

import grpo_qwen3vl_8b


def get_config():
    config = grpo_qwen3vl_8b.get_config()
    config.name = "grpo_qwen3vl_4b"
    return config
