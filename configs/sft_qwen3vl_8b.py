"""Supervised fine-tuning of Qwen3-VL-8B on VideoRFT-CoT-102K, with the paper's numbers.

videorft sft --config=configs/sft_qwen3vl_8b.py --workdir=runs/sft_qwen3vl_8b \
    --config.model.init_from=Qwen3-VL-8B-Instruct --config.data.records=VideoRFT-CoT-102K.jsonl
"""

import sft_7b


def get_config():
    config = sft_7b.get_config()
    config.name = "sft_qwen3vl_8b"
    config.media.patch_size = 16
    return config
