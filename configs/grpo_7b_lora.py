"""GRPO of Qwen2.5-VL-7B with LoRA on one 80 GB GPU.

videorft grpo --config=configs/grpo_7b_lora.py --workdir=runs/grpo_7b_lora \
    --config.model.init_from=runs/sft_7b/hf --config.data.records=VideoRFT-RL-310K.jsonl \
    --config.reward.siglip=siglip-so400m-patch14-384
"""

import grpo_7b


def get_config():
    config = grpo_7b.get_config()
    config.name = "grpo_7b_lora"
    config.lora.rank = 32
    config.lora.alpha = 64.0
    config.optim.lr = 2e-5  # adapters start at zero and need a larger step than weights
    config.optim.clip = 1.0
    config.train.accumulate = 8  # one group at a time
    return config
