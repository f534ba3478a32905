"""Every option with its default and its meaning; a recipe overrides what it needs.

The code holds no defaults. `videorft sft --help=options` prints the comments of this file: the one
behind an option, or those above it, and for a section those above its first line.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = ""  # what errors and logs call the recipe
    config.seed = 0  # seeds random weights, the order of the data and completions
    config.compile_cache = ""  # folder of compiled programs, also gs://; empty: in the workdir

    # The model that training starts from, and how it is computed.
    config.model = ConfigDict()
    config.model.init_from = ""  # Hugging Face folder of a model, its name on the hub, or a URL
    config.model.download = False  # fetch a name of the hub that is not in its local cache
    config.model.adapter = ""  # PEFT folder of LoRA, put on those weights; empty: none
    config.model.strip_prefix = ""  # what another trainer put before their names, as module.
    config.model.dtype = "bfloat16"  # bfloat16 or float32 computes; weights stay float32
    config.model.attention = "auto"  # auto, reference, chunked (CPU), splash (TPU), flash (GPU)
    config.model.remat = "full"  # recomputed: none, full, save_{attention,projections,gate,dots}

    # LoRA adapters beside a frozen model, instead of training the weights themselves.
    config.lora = ConfigDict()
    config.lora.rank = 0  # rank of the adapters; 0: train the weights themselves
    config.lora.alpha = 64.0  # an adapter counts alpha / rank times
    # regular expressions of the parameter paths that get an adapter
    config.lora.targets = (r"text/layers/attn/(q|k|v|o)$", r"text/layers/mlp/(gate|up|down)$")

    # The records that are read, and how they become batches.
    config.data = ConfigDict()
    config.data.records = ""  # JSON, JSONL, CSV, Arrow, parquet, a Hugging Face folder, tfds:NAME
    config.data.format = "auto"  # form of the records: auto, videorft, messages, sharegpt, trl
    config.data.root = ""  # folder that the paths of media start from; empty: that of the records
    config.data.template_file = ""  # prompt template, .json or .toml; empty: the paper's
    config.data.cache = ""  # folder of decoded frames written by `videorft cache`; empty: none
    config.data.pass_rates = ""  # file of `videorft pass_rate`, for filter and order; empty: none
    config.data.filter = ""  # records that are read, such as "0 < pass_rate < 1"; empty: all
    config.data.order = ""  # easy_first or hard_first by pass rate, every epoch; empty: shuffled
    config.data.other_pass_rates = False  # take rates of other weights than those of init_from
    config.data.rows = 16  # rows of a batch, of all processes together; prompts of a step in GRPO
    config.data.row_tokens = 4096  # tokens of a row, and the most that one sample may have
    config.data.max_buckets = 4  # shapes of batches, each of which is compiled
    config.data.multiple = 128  # lengths of rows are multiples of it
    config.data.epochs = 1  # times that every record is read
    config.data.max_bad_fraction = 0.05  # share of records that cannot be read before a run stops
    config.data.threads = -1  # decoding threads of a process; -1: one per core, at most 16
    config.data.workers = 0  # decoding processes; 0: threads alone
    config.data.timeout_s = 600.0  # seconds without a batch before a run fails
    config.data.isolate = False  # decode in processes that can be killed, for untrusted media

    # What a clip may cost at most; what is above is quarantined.
    config.limits = ConfigDict()
    config.limits.max_bytes = 16 << 30  # most bytes of a file
    config.limits.max_source_pixels = 8192 * 4320  # most pixels of a frame before resizing
    config.limits.max_seconds = 4 * 3600.0  # most seconds of the part of a clip that is read
    config.limits.max_packets = 2_000_000  # most packets of a video, files of a list of frames
    config.limits.timeout_s = 120.0  # seconds for one clip
    config.limits.memory_bytes = 2 << 30  # memory of a decoding process, with data.isolate
    config.limits.roots = ()  # folders beside data.root where paths and links may lead

    # How clips become frames; a field that is not 0 replaces that of the preset.
    config.media = ConfigDict()
    config.media.preset = "train"  # train or evaluate
    config.media.fps = 0.0  # frames sampled of a second
    config.media.min_frames = 0  # fewest frames of a clip
    config.media.max_frames = 0  # most frames of a clip; it lowers the fewest of a preset
    config.media.min_pixels = 0  # fewest pixels of a frame after resizing
    config.media.max_pixels = 0  # most pixels of a frame after resizing
    config.media.total_pixels = 0  # most pixels of all frames of a clip together
    config.media.patch_size = 14  # side of a patch in pixels: 14 for Qwen2.5-VL, 16 for Qwen3-VL
    config.media.sampling = "qwen"  # rule that takes frames: qwen (qwen-vl-utils), hf (processor)
    config.media.budget = "frame"  # what pixel bounds hold for: frame (qwen-vl-utils), clip (hf)
    config.media.stamps = "index"  # times in Qwen3-VL's prompts: index (over the rate), time (true)
    config.media.video_wrapper = "qwen"  # Qwen3-VL's markers around a clip: qwen (none), hf5
    config.media.mrope_rule = "qwen"  # how time becomes positions: qwen, hf4 or hf5, see README

    # The optimizer and its learning rate.
    config.optim = ConfigDict()
    config.optim.name = "adamw"  # adamw or adafactor
    config.optim.lr = 1e-6  # the highest learning rate
    config.optim.schedule = "linear"  # how the rate falls: linear or cosine to 0, constant
    config.optim.warmup_steps = 0  # optimizer steps in which the rate rises to lr
    config.optim.b1 = 0.9  # decay of AdamW's first moment
    config.optim.b2 = 0.999  # decay of AdamW's second moment
    config.optim.eps = 1e-8  # added to AdamW's denominator
    config.optim.weight_decay = 0.0  # times the rate, decay of matrices; norms and biases have none
    config.optim.clip = 5.0  # largest global norm of the gradient; 0: no clipping
    config.optim.mu_dtype = "float32"  # AdamW's first moment; bfloat16 saves 2 bytes a weight
    config.optim.ema_decay = 0.0  # decay of the moving average of weights; 0: no average is kept

    # Devices along each axis of the mesh; at most one is -1, which takes those that are left.
    config.mesh = ConfigDict()
    config.mesh.data = 1  # rows are split over it, weights are whole in each part
    config.mesh.fsdp = -1  # rows and weights are split over it
    config.mesh.tensor = 1  # heads and wide matrices are split over it
    config.mesh.slices = 1  # TPU slices; data is split over them first

    # What SFT and GRPO have in common.
    config.train = ConfigDict()
    config.train.accumulate = 1  # slices that a batch is taken in, to save memory
    config.train.freeze = ()  # towers that do not train, among vision, merger, text
    config.train.max_steps = 0  # last step; 0: to the end of the data
    config.train.max_skipped_in_row = 5  # steps in a row that may teach nothing before a run stops
    config.train.allow_changes = False  # go on with other options than the run was begun with
    config.train.legacy_labels = False  # the original's loss on every token, for comparison

    # How GRPO draws completions.
    config.rollout = ConfigDict()
    config.rollout.num_rollouts = 8  # R, completions of a prompt
    config.rollout.max_new_tokens = 768  # longest completion
    config.rollout.temperature = 1.0  # the logits are divided by it
    config.rollout.top_p = 1.0  # smallest set of tokens with this probability; 1: off
    config.rollout.top_k = 0  # this many likeliest tokens; 0: off
    config.rollout.min_p = 0.0  # tokens with this share of the likeliest's probability; 0: off
    config.rollout.chunk = 64  # most tokens between two looks of the host
    config.rollout.num_buckets = 6  # batch sizes that finished completions are compacted to
    config.rollout.int8_weights = False  # decode with weights of 8 bits
    config.rollout.int8_cache = False  # decode with keys and values of 8 bits
    config.rollout.mesh = "auto"  # data,fsdp,tensor of drawing; auto: the planner's, "": training's

    # What a completion may call between its turns, in GRPO, in validation and in evaluation.
    config.tools = ConfigDict()
    config.tools.names = ()  # frames, or functions of yours as module:function; empty: no tools
    config.tools.max_turns = 2  # turns of a completion, the first included
    config.tools.max_frames = 8  # frames that one call may return
    config.tools.max_tokens = 1024  # tokens that the result of one call may take
    config.tools.timeout_s = 30.0  # seconds for one call

    # The loss of GRPO and what surrounds it.
    config.grpo = ConfigDict()
    config.grpo.variant = "grpo"  # grpo, dapo, dr_grpo, gspo, cispo (MiniMax-M1), sapo
    config.grpo.beta = 0.04  # weight of the divergence from the reference policy; 0: no reference
    config.grpo.kl = "k3"  # estimator of the divergence: k2, k3 (paper), k3_weighted (TRL)
    config.grpo.clip_low = 0.2  # how far below 1 the ratio of policies may go
    config.grpo.clip_high = 0.2  # how far above 1 the ratio may go; DAPO has more than clip_low
    config.grpo.divide_by_std = True  # divide advantages by a spread; Dr. GRPO does not
    config.grpo.scale_rewards = "group"  # whose spread divides: group, batch (REINFORCE++), none
    config.grpo.num_updates = 1  # times that the completions of one rollout are learnt from (PPO)
    config.grpo.minibatches = 1  # optimizer steps of each of num_updates, each of some groups (PPO)
    config.grpo.normalise_each = False  # normalise each reward before the sum (GDPO)
    config.grpo.kl_in_reward = False  # k1 off the reward, not in the loss (Ouyang et al. 2022)
    config.grpo.top_entropy = 1.0  # share of tokens, of most entropy, that count (Wang et al. 2025)
    config.grpo.off_policy_limit = 0.0  # most drift of a bad completion (DeepSeek-V3.2); 0: off
    config.grpo.num_given = 0  # completions of a group that its record gives (LUFFY); 0: none
    config.grpo.given_shaping = 0.1  # gamma of p / (p + gamma), the weight of a given token (LUFFY)
    config.grpo.mask_truncated = False  # leave completions without an end out of the loss (DAPO)
    config.grpo.sampler_cap = 0.0  # most weight of trainer over sampler (TIS); 0: off
    config.grpo.sampler_floor = 0.0  # least weight of trainer over sampler (IcePop)
    config.grpo.sampler_level = "token"  # weight each token or a whole sequence (verl, TRL)
    config.grpo.sampler_rule = "truncate"  # weights out of bounds: truncate (TIS), or mask (IcePop)
    config.grpo.dual_clip = 0.0  # bound of a bad completion's loss (Ye et al. 2020); 0: off
    config.grpo.entropy_bonus = 0.0  # weight of entropy in the objective (A3C); 0: off
    config.grpo.max_draws = 1  # batches drawn, at most, to replace groups of equal rewards (DAPO)
    config.grpo.filter = "accuracy"  # reward that must differ in a drawn group; absent: the total
    config.grpo.reference = ""  # folder of the reference policy, as a teacher; empty: init_from
    config.grpo.sync_every = 0  # steps after which the reference follows (TR-DPO, TRL); 0: never
    config.grpo.reference_mixup = 0.6  # share of the policy in a reference that has followed (TRL)
    config.grpo.reference_on_host = False  # keep the reference policy in the host's memory
    config.grpo.length_buckets = 4  # completion lengths that the update is compiled for

    # How GRPO watches itself: metrics alarm/*, and bounds beyond which a run ends.
    config.alarms = ConfigDict()
    config.alarms.window = 20  # steps whose means are compared with those before; 0: no alarms
    config.alarms.entropy_below = 0.0  # mean entropy of a window that ends the run; 0: never
    config.alarms.kl_above = 0.0  # mean divergence of a window that ends the run; 0: never
    config.alarms.length_below = 0.0  # mean completion tokens that end the run; 0: never

    # (name, weight) pairs: accuracy, format, semantic, length, overlong, order, or module:function
    config.rewards = (("accuracy", 1.0), ("format", 1.0), ("semantic", 1.0))
    # How rewards are computed.
    config.reward = ConfigDict()
    config.reward.mode = "strict"  # rules of the string rewards: repo, paper, strict
    config.reward.gated = ("semantic",)  # rewards that count only where the answer is right
    config.reward.gates = ()  # (problem type, least accuracy) pairs; empty: those of the mode
    config.reward.overlong_tokens = 128  # last tokens in which "overlong" falls to -1 (DAPO)
    config.reward.timeout_s = 30.0  # seconds for the user rewards of a batch
    config.reward.siglip = ""  # Hugging Face folder of a SigLIP, for the semantic reward
    config.reward.frames = 16  # frames of a clip that SigLIP sees
    config.reward.averaging = "paper"  # paper: mean embedding, then scaled; repo: the reverse
    config.reward.order = config.reward.get_ref("averaging")  # the former name of averaging
    config.reward.text_rule = "paper"  # rule for the sentences of a completion that SigLIP reads
    config.reward.scale = 2.0  # the cosine of the semantic reward is multiplied by it
    config.reward.cache = ""  # folder of frame embeddings; empty: in memory

    # What `videorft evaluate` does.
    config.evaluate = ConfigDict()
    config.evaluate.checkpoint = ""  # work directory of a run, or a step in it; empty: init_from
    config.evaluate.ema = False  # the moving average of the checkpoint's weights
    config.evaluate.other_media = False  # allow another media contract than the checkpoint's
    config.evaluate.blank = False  # clips without content: what the text alone gives away
    config.evaluate.limit = 0  # first records of the file; 0: all
    config.evaluate.num_rollouts = 1  # completions of a record
    config.evaluate.max_new_tokens = 1024  # longest completion
    config.evaluate.temperature = 0.0  # 0: the likeliest token each time
    config.evaluate.top_p = 1.0  # smallest set of tokens with this probability; 1: off
    config.evaluate.top_k = 0  # this many likeliest tokens; 0: off
    config.evaluate.min_p = 0.0  # tokens with this share of the likeliest's probability; 0: off

    # The grid of `videorft ablate`.
    config.ablate = ConfigDict()
    config.ablate.variants = ()  # (name, ((option, value), ...)) pairs; the first is the baseline
    config.ablate.seeds = (0,)  # each variant is trained once with each
    config.ablate.records = ""  # held-out records, evaluated with the options of `evaluate`
    config.ablate.root = ""  # folder of their media; empty: that of the records

    # Checkpoints; one is also written at the end, on SIGTERM and on Ctrl-C.
    config.checkpoint = ConfigDict()
    config.checkpoint.every = 500  # steps between two checkpoints
    config.checkpoint.keep_last = 2  # newest checkpoints that stay
    config.checkpoint.keep_every = 0  # those whose step it divides stay too; 0: none

    # Held-out records that the model answers greedily while it trains, in SFT and in GRPO.
    config.validate = ConfigDict()
    config.validate.records = ""  # file of records whose clips are not trained on; empty: none
    config.validate.root = ""  # folder of their media; empty: that of the records
    config.validate.every = 100  # steps between two rounds; one more follows the last step
    config.validate.limit = 0  # first records of the file; 0: all
    config.validate.max_new_tokens = 768  # longest answer
    config.validate.keep_best = False  # the checkpoint of the best round stays
    config.validate.patience = 0  # rounds without a better one before a run stops; 0: never

    # What a run says while it goes.
    config.log = ConfigDict()
    config.log.interval_s = 30.0  # seconds between two lines, where the console is no terminal
    config.log.wandb = ""  # project of Weights & Biases; empty: not used
    config.log.profile = 0  # step of sft or grpo whose trace goes to WORKDIR/profile; 0: none
    return config
