"""Supervised fine-tuning of Qwen2.5-VL-7B with LoRA on one 80 GB GPU.

videorft sft --config=configs/sft_7b_lora.py --workdir=runs/sft_7b_lora \
    --config.model.init_from=Qwen2.5-VL-7B-Instruct --config.data.records=VideoRFT-CoT-102K.jsonl
"""

import sft_7b


def get_config():
    config = sft_7b.get_config()
    config.name = "sft_7b_lora"
    config.lora.rank = 32
    config.lora.alpha = 64.0
    config.optim.lr = 1e-4  # adapters start at zero and need a larger step than weights
    config.optim.clip = 1.0
    config.train.accumulate = 16
    return config
