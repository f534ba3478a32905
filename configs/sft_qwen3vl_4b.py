"""Supervised fine-tuning of Qwen3-VL-4B on VideoRFT-CoT-102K.

videorft sft --config=configs/sft_qwen3vl_4b.py --workdir=runs/sft_qwen3vl_4b \
    --config.model.init_from=Qwen3-VL-4B-Instruct --config.data.records=VideoRFT-CoT-102K.jsonl
"""

import sft_qwen3vl_8b


def get_config():
    config = sft_qwen3vl_8b.get_config()
    config.name = "sft_qwen3vl_4b"
    return config
