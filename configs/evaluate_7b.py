"""Evaluation of Qwen2.5-VL-7B as the paper does it: 32 frames of 256 * 28 * 28 pixels, greedy.

videorft evaluate --config=configs/evaluate_7b.py --workdir=runs/grpo_7b/mmvu \\
    --config.evaluate.checkpoint=runs/grpo_7b --config.evaluate.other_media=True \\
    --config.data.records=eval_mmvu.json
"""

import common


def get_config():
    config = common.get_config()
    config.name = "evaluate_7b"
    config.media.preset = "evaluate"  # the runs of the recipes were trained on fewer frames
    config.data.rows = 16
    config.data.max_bad_fraction = 1.0  # what cannot be read is counted and ends no evaluation
    config.data.row_tokens = 5120  # tokens of a prompt; 32 frames are at most 4,096
    config.evaluate.max_new_tokens = 1024
    config.evaluate.temperature = 0.0  # the original's top_p of 0.001 leaves one token as well
    return config
