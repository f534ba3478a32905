"""The whole method on a laptop: synthetic clips, SFT on few chains of thought, GRPO on many fresh
clips, held-out accuracy beside two controls. `bash launch/demo.sh` installs first and then runs

videorft demo --config=configs/demo.py --workdir=runs/demo

and `--config=configs/demo.py:smoke` is the same in under two minutes, too small to learn. With
`:qwen3vl` and `:qwen3vl_smoke` the model is a small Qwen3-VL.
"""

import common

TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")


SIZES = ("full", "smoke", "qwen3vl", "qwen3vl_smoke")


def get_config(size="full"):
    if size not in SIZES:
        known = ", ".join(f"configs/demo.py:{name}" for name in SIZES[1:])
        raise ValueError(f"configs/demo.py:{size}; write configs/demo.py, or one of {known}")
    config = common.ConfigDict()
    config.name = "demo"
    config.seed = 0  # seeds clips, weights, order and draws
    config.compile_cache = ""

    config.world = common.ConfigDict()  # see videorft_jax/demo/scenes.py
    config.world.size = (112, 112)
    config.world.num_frames = 4
    config.world.questions = ("last_colour",)
    config.world.shape_size = 0.3
    config.world.shapes = ("square", "bar", "post")
    config.world.travel = (0.3, 0.5)
    config.world.background = (123, 117, 104)  # the mean of the model's normalisation
    config.world.max_shapes = 2
    config.world.shuffle_options = False
    config.world.still_every = 0

    config.clips = common.ConfigDict()
    config.clips.sft = 80  # chains of thought are scarce
    config.clips.rl = 4800  # questions are not
    config.clips.eval = 1000

    config.template = common.ConfigDict()  # a short prompt: half of the demo's time is prompt
    config.template.system = "Think, then answer."
    config.template.question = "{problem}{suffix}"
    config.template.suffixes = dict.fromkeys(TYPES, "")

    config.siglip = common.ConfigDict()
    config.siglip.steps = 300
    config.siglip.image_size = 56
    config.siglip.text_length = 32

    config.model = common.ConfigDict()  # keys of a Hugging Face config.json; head dim 32
    config.model.model_type = "qwen2_5_vl"
    config.model.init_gain = 2.0  # random weights are N(0, 0.02^2), as in large models, times this
    config.model.num_hidden_layers = 2
    config.model.hidden_size = 96
    config.model.num_attention_heads = 3
    config.model.num_key_value_heads = 3
    config.model.intermediate_size = 192
    config.model.vocab_size = 512
    config.model.vision_depth = 2
    config.model.vision_hidden_size = 64
    config.model.vision_num_heads = 2
    config.model.vision_intermediate_size = 128

    config.sft = _stage("demo sft")
    config.sft.data.rows = 16
    config.sft.data.row_tokens = 128
    config.sft.data.multiple = 8
    config.sft.data.epochs = 500  # no limit, max_steps is
    config.sft.train.max_steps = 240
    config.sft.optim.lr = 2e-3
    config.sft.optim.schedule = "cosine"
    config.sft.optim.warmup_steps = 40
    config.sft.optim.b2 = 0.98
    config.sft.optim.weight_decay = 0.01
    config.sft.optim.clip = 1.0

    config.grpo = _stage("demo grpo")
    config.grpo.data.rows = 16  # prompts of a step
    config.grpo.data.row_tokens = 256
    config.grpo.data.multiple = 8
    config.grpo.train.max_steps = 300
    config.grpo.optim.lr = 1.5e-4
    config.grpo.optim.schedule = "constant"
    config.grpo.optim.warmup_steps = 5
    config.grpo.optim.b2 = 0.98
    config.grpo.optim.clip = 1.0
    config.grpo.rollout.num_rollouts = 8
    config.grpo.rollout.max_new_tokens = 48
    config.grpo.rollout.num_buckets = 1
    config.grpo.grpo.variant = "dapo"  # all tokens count the same, so that brevity earns nothing
    config.grpo.grpo.beta = 0.0
    config.grpo.grpo.divide_by_std = False  # a group that is all right would learn SigLIP's noise
    config.grpo.grpo.length_buckets = 1
    config.grpo.reward.frames = 4
    if size.startswith("qwen3vl"):
        _change_family(config)
    if size.endswith("smoke"):
        _shrink(config)
    return config


def _change_family(config):
    """The same with Qwen3-VL: frames of as many visual tokens, and room for times in the prompt."""
    config.world.size = (128, 128)
    config.world.background = (128, 128, 128)
    config.model.model_type = "qwen3_vl"
    config.model.vision_num_position_embeddings = 64
    config.sft.data.row_tokens = 192
    for stage in (config.sft, config.grpo):
        stage.media.patch_size = 16
        stage.media.min_pixels = 32 * 32
        stage.media.max_pixels = 128 * 128


def _shrink(config):
    """Every stage and every file, too little to learn from."""
    config.clips.sft = config.clips.rl = 48
    config.clips.eval = 30
    config.siglip.steps = 8
    config.model.hidden_size = 32
    config.model.num_attention_heads = 2
    config.model.num_key_value_heads = 2
    config.model.intermediate_size = 48
    config.model.vision_hidden_size = 32
    config.model.vision_intermediate_size = 48
    config.sft.train.max_steps = 6
    config.grpo.train.max_steps = 4
    config.grpo.rollout.max_new_tokens = 16
    config.grpo.data.rows = 4
    for stage in (config.sft, config.grpo):
        stage.checkpoint.every = 2


def _stage(name):
    """A recipe as the other files here, for a tiny model on a CPU."""
    config = common.get_config()
    config.name = name
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.data.max_buckets = 1
    config.media.min_frames = 2
    config.media.max_frames = 4
    config.media.fps = 4.0
    config.media.min_pixels = 28 * 28
    config.media.max_pixels = 112 * 112
    config.checkpoint.every = 100
    config.checkpoint.keep_last = 1
    config.log.interval_s = 10.0
    return config
