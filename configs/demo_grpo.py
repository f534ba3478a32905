"""GRPO by itself on the clips and the SFT model of a demo that has run, to try out its options.

videorft demo --config=configs/demo.py --workdir=runs/demo
videorft grpo --config=configs/demo_grpo.py --workdir=runs/demo_grpo
"""

import demo


def get_config():
    config = demo.get_config().grpo
    config.name = "demo_grpo"
    config.model.init_from = "runs/demo/sft/hf"
    config.data.records = "runs/demo/clips/rl.jsonl"
    config.data.template_file = "runs/demo/template.json"
    config.rewards = (("accuracy", 1.0), ("format", 1.0))  # the semantic one needs runs/demo/siglip
    config.reward.gated = ()
    return config
