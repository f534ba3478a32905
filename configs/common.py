"""Every option and its default; a recipe overrides what it needs. Code holds no defaults."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = ""  # what errors and logs call the recipe
    config.seed = 0
    config.compile_cache = ""  # folder of compiled programs, also gs://; empty: in the workdir

    config.model = ConfigDict()
    config.model.init_from = ""  # Hugging Face folder to start from
    config.model.dtype = "bfloat16"  # of the computation; trained weights are kept in float32
    config.model.attention = "auto"  # auto, reference, chunked, splash, flash
    config.model.remat = "full"  # none, full, save_attention, save_dots

    config.lora = ConfigDict()
    config.lora.rank = 0  # 0: train the weights themselves
    config.lora.alpha = 64.0
    config.lora.targets = (r"text/layers/attn/(q|k|v|o)$", r"text/layers/mlp/(gate|up|down)$")

    config.data = ConfigDict()
    config.data.records = ""  # JSON or JSONL file
    config.data.root = ""  # folder of the media; empty: that of the records
    config.data.template_file = ""  # prompt template; empty: ours
    config.data.cache = ""  # folder of a frame cache written by `videorft cache`
    config.data.rows = 16  # rows of a batch, all processes together
    config.data.row_tokens = 4096  # tokens of a packed row, and the most of one sample
    config.data.max_buckets = 4  # compiled shapes
    config.data.multiple = 128
    config.data.epochs = 1
    config.data.max_bad_fraction = 0.05
    config.data.threads = -1  # decoding threads of a process; -1: one per core, at most 16
    config.data.workers = 0  # decoding processes
    config.data.timeout_s = 600.0
    config.data.isolate = False  # decode in killable processes, for untrusted media

    config.media = ConfigDict()
    config.media.preset = "train"  # train or evaluate; the fields below override it, 0: do not
    config.media.fps = 0.0
    config.media.min_frames = 0
    config.media.max_frames = 0
    config.media.min_pixels = 0
    config.media.max_pixels = 0
    config.media.mrope_rule = "qwen"

    config.optim = ConfigDict()
    config.optim.name = "adamw"
    config.optim.lr = 1e-6
    config.optim.schedule = "linear"
    config.optim.warmup_steps = 0
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.0
    config.optim.clip = 5.0  # global norm; 0: no clipping
    config.optim.mu_dtype = "float32"  # bfloat16 saves 2 bytes per weight
    config.optim.ema_decay = 0.0  # 0: no average is kept

    config.mesh = ConfigDict()  # devices along each axis; at most one is -1: what is left
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.tensor = 1
    config.mesh.slices = 1  # TPU slices; data is split over them first

    config.train = ConfigDict()
    config.train.accumulate = 1  # slices that a batch is taken in
    config.train.freeze = ()  # among vision, merger, text
    config.train.max_steps = 0  # 0: to the end of the data
    config.train.max_skipped_in_row = 5  # non-finite steps in a row after which a run stops
    config.train.legacy_labels = False  # the original's loss on everything, for comparison

    config.rollout = ConfigDict()
    config.rollout.num_rollouts = 8  # R, completions of a prompt
    config.rollout.max_new_tokens = 768
    config.rollout.temperature = 1.0
    config.rollout.top_p = 1.0  # 1: off
    config.rollout.top_k = 0  # 0: off
    config.rollout.min_p = 0.0  # 0: off
    config.rollout.chunk = 64  # most tokens between two looks of the host
    config.rollout.num_buckets = 6  # batch sizes that finished completions are compacted to
    config.rollout.int8_weights = False
    config.rollout.int8_cache = False

    config.grpo = ConfigDict()
    config.grpo.variant = "grpo"  # grpo, dapo, dr_grpo, gspo, cispo
    config.grpo.beta = 0.04  # weight of the divergence from the reference policy; 0: no reference
    config.grpo.kl = "k3"  # k1, k2, k3
    config.grpo.clip_low = 0.2
    config.grpo.clip_high = 0.2
    config.grpo.divide_by_std = True
    config.grpo.num_updates = 1  # optimizer steps per rollout
    config.grpo.mask_truncated = False  # leave completions without an end out of the loss
    config.grpo.sampler_cap = 0.0  # of importance weights between sampler and trainer; 0: none
    config.grpo.max_draws = 1  # batches drawn, at most, to replace groups of equal rewards
    config.grpo.reference_on_host = False  # keep the reference policy in the host's memory
    config.grpo.length_buckets = 4  # completion lengths that the update is compiled for

    config.rewards = (("accuracy", 1.0), ("format", 1.0), ("semantic", 1.0))  # name, weight
    config.reward = ConfigDict()
    config.reward.mode = "strict"  # repo, paper, strict
    config.reward.gated = ("semantic",)  # count only where the answer is right
    config.reward.gates = ()  # (problem type, least accuracy) pairs; empty: those of the mode
    config.reward.timeout_s = 30.0  # for the user rewards of a batch
    config.reward.siglip = ""  # Hugging Face folder of a SigLIP
    config.reward.frames = 16  # of a clip that SigLIP sees
    config.reward.order = "paper"  # paper: mean embedding, then scaled; repo: the other way round
    config.reward.text_rule = "paper"  # which sentences are held against the frames
    config.reward.scale = 2.0
    config.reward.cache = ""  # folder of frame embeddings; empty: in memory

    config.evaluate = ConfigDict()
    config.evaluate.checkpoint = ""  # work directory of a run, or a step in it; empty: init_from
    config.evaluate.ema = False  # the average of its weights
    config.evaluate.other_media = False  # allow another media contract than the checkpoint's
    config.evaluate.blank = False  # clips without content, what the text alone gives away
    config.evaluate.limit = 0  # first records of the file; 0: all
    config.evaluate.num_rollouts = 1
    config.evaluate.max_new_tokens = 1024
    config.evaluate.temperature = 0.0  # 0: greedy
    config.evaluate.top_p = 1.0

    config.ablate = ConfigDict()
    config.ablate.variants = ()  # (name, ((option, value), ...)) pairs; the first is the baseline
    config.ablate.seeds = (0,)
    config.ablate.records = ""  # held out, with the options of `evaluate`
    config.ablate.root = ""

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 500  # steps; one is also written at the end and on SIGTERM
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_every = 0

    config.log = ConfigDict()
    config.log.interval_s = 30.0  # between lines when not on a terminal
    config.log.wandb = ""  # project; empty: not used
    return config
