"""GRPO of Qwen2.5-VL-3B on VideoRFT-RL-310K with the semantic reward, the paper's recipe.

videorft grpo --config=configs/grpo_3b.py --workdir=runs/grpo_3b \
    --config.model.init_from=runs/sft_3b/hf --config.data.records=VideoRFT-RL-310K.jsonl \
    --config.reward.siglip=siglip-so400m-patch14-384
"""

import common


def get_config():
    config = common.get_config()
    config.name = "grpo_3b"
    config.optim.lr = 1e-6
    config.optim.schedule = "cosine"
    config.optim.weight_decay = 0.01
    config.optim.clip = 5.0
    config.data.rows = 8  # prompts of a step
    config.data.row_tokens = 2048  # tokens of a prompt; 16 frames are at most 1,152
    config.train.max_steps = 1000
    config.rollout.num_rollouts = 8
    config.rollout.max_new_tokens = 768
    config.rollout.top_p = 0.95
    config.grpo.beta = 0.04
    config.checkpoint.every = 100
    return config
