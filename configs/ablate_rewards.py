"""Ablation of the rewards and the loss of GRPO, Qwen2.5-VL-7B.

videorft ablate --config=configs/ablate_rewards.py --workdir=runs/ablate_rewards \
    --config.model.init_from=runs/sft_7b/hf --config.data.records=VideoRFT-RL-310K.jsonl \
    --config.reward.siglip=siglip-so400m-patch14-384 --config.ablate.records=HELD_OUT.jsonl
"""

import grpo_7b

ACCURACY, FORMAT = ("accuracy", 1.0), ("format", 1.0)

# The rules of the published code: strings, embeddings, text, and a bonus of its scripts for length.
REPO_RULES = (
    ("reward.mode", "repo"),
    ("reward.averaging", "repo"),
    ("reward.text_rule", "repo"),
    ("rewards", (ACCURACY, FORMAT, ("semantic", 1.0), ("length", 0.2))),
)


def get_config():
    config = grpo_7b.get_config()
    config.name = "ablate_rewards"
    config.grpo.num_updates = 2  # with one the ratio is 1, and clips and gspo change nothing
    config.ablate.seeds = (0, 1, 2)
    config.ablate.variants = (
        ("all_rewards", ()),
        ("no_semantic", (("rewards", (ACCURACY, FORMAT)),)),
        ("half_semantic", (("rewards", (ACCURACY, FORMAT, ("semantic", 0.5))),)),
        ("ungated_semantic", (("reward.gated", ()),)),
        ("repo_rules", REPO_RULES),
        ("paper_rules", (("reward.mode", "paper"),)),
        ("gspo", (("grpo.variant", "gspo"),)),
        ("dapo", (("grpo.variant", "dapo"), ("grpo.clip_high", 0.28), ("grpo.beta", 0.0))),
        ("dr_grpo", (("grpo.variant", "dr_grpo"), ("grpo.divide_by_std", False))),
        ("no_kl", (("grpo.beta", 0.0),)),
    )
    return config
