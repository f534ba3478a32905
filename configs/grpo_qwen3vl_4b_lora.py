"""GRPO of Qwen3-VL-4B with LoRA on one 80 GB GPU.

videorft grpo --config=configs/grpo_qwen3vl_4b_lora.py --workdir=runs/grpo_qwen3vl_4b_lora \
    --config.model.init_from=runs/sft_qwen3vl_4b/hf --config.data.records=VideoRFT-RL-310K.jsonl \
    --config.reward.siglip=siglip-so400m-patch14-384
"""

import grpo_7b_lora


def get_config():
    config = grpo_7b_lora.get_config()
    config.name = "grpo_qwen3vl_4b_lora"
    config.media.patch_size = 16
    return config
