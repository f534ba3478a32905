"""Supervised fine-tuning of Qwen2.5-VL-3B on VideoRFT-CoT-102K, the paper's recipe.

videorft sft --config=configs/sft_3b.py --workdir=runs/sft_3b \
    --config.model.init_from=Qwen2.5-VL-3B-Instruct --config.data.records=VideoRFT-CoT-102K.jsonl
"""

import common


def get_config():
    config = common.get_config()
    config.name = "sft_3b"
    config.optim.lr = 1e-6  # linear decay to 0, no warm-up
    config.optim.clip = 5.0
    config.data.rows = 16  # the original's 16 samples; packing puts about two in a row
    config.data.row_tokens = 4096
    config.data.epochs = 1
    config.train.accumulate = 2
    config.checkpoint.every = 500
    return config
