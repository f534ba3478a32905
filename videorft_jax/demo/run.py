"""The whole method in minutes on two CPU cores, from H.264 files to a Hugging Face folder.

Annotated chains of thought are scarce, questions with checkable answers are not: SFT sees few clips
many times, GRPO many fresh ones, with all rewards. Both are judged on held-out clips, beside two
controls: as much more time spent on SFT with the same chains, and the model without its video.
Every stage is one of the other mains, called as a user would. A stage that is done is skipped and
one that was stopped goes on, so the same command finishes the demo.
"""

import functools
import json
import logging
import os
import pathlib
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from videorft_jax.data.records.prompts import (
    build_messages,
    build_target,
    load_template,
    render_text,
)
from videorft_jax.data.records.records import RecordSource
from videorft_jax.demo import siglip as siglip_training
from videorft_jax.demo.dataset import SPLITS, make_sample, write_dataset
from videorft_jax.demo.report import compare, format_report
from videorft_jax.demo.scenes import WorldConfig, draw_frames
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer
from videorft_jax.models.hf_folder import write_checkpoint
from videorft_jax.models.qwen2_5_vl import model as vlm
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values
from videorft_jax.models.siglip import hf_folder as siglip
from videorft_jax.rewards.sentences import describe
from videorft_jax.training import export

log = logging.getLogger(__name__)

_CONTROL_TOKENS = (
    ("bos", "<|endoftext|>"),
    ("eos", "<|im_end|>"),
    ("vision_start", "<|vision_start|>"),
    ("vision_end", "<|vision_end|>"),
    ("vision", "<|vision_pad|>"),
    ("image", "<|image_pad|>"),
    ("video", "<|video_pad|>"),
)


class Demo:
    """One seed of the demo in one work directory."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: str,
        *,
        sft: Callable[[ConfigDict, str], Any],
        grpo: Callable[[ConfigDict, str], Any],
        evaluate: Callable[[ConfigDict, str], Any],
    ):
        """sft, grpo, evaluate: the mains of these commands, called with a config and a work
        directory."""
        self.run_sft, self.run_grpo, self.run_evaluation = sft, grpo, evaluate
        self.config, self.folder = config, pathlib.Path(workdir)
        self.world = WorldConfig(**config.world.to_dict())
        self.clips = {split: str(self.folder / f"clips/{split}.jsonl") for split in SPLITS}

    def run(self) -> int:
        """Returns exit code 0; SIGTERM ends SFT and GRPO as it ends them alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stages = (
            ("clips", self.write_clips),
            ("siglip", self.train_siglip),
            ("model", self.make_model),
            ("before", functools.partial(self.evaluate, "before", "")),
            ("sft", functools.partial(self.train, "sft", self.sft_config("model"))),
            ("after_sft", functools.partial(self.evaluate, "after_sft", "sft")),
            ("grpo", functools.partial(self.train, "grpo", self.grpo_config())),
            ("after_grpo", functools.partial(self.evaluate, "after_grpo", "grpo")),
            ("blank", functools.partial(self.evaluate, "blank", "grpo", blank=True)),
            ("more_sft", self.train_longer),
            ("after_more_sft", functools.partial(self.evaluate, "after_more_sft", "more_sft")),
        )
        for number, (name, stage) in enumerate(stages, 1):
            self.once(name, stage, f"[{number}/{len(stages)}]")
        print(self.report())
        return 0

    def once(self, name: str, stage, place: str) -> None:
        """Runs a stage unless it is done, and notes the seconds it took."""
        done = self.folder / "done" / name
        if done.exists():
            log.info("%s %s: done before", place, name)
            return
        log.info("%s %s", place, name)
        start = time.perf_counter()
        stage()
        done.parent.mkdir(exist_ok=True)
        _write(done, f"{time.perf_counter() - start:.1f}\n")

    # Stages

    def write_clips(self) -> None:
        counts = self.config.clips

        def progress(done, total):
            if done % max(1, total // 10) < max(1, total // 100):
                log.info("clips: %d of %d", done, total)

        write_dataset(
            self.folder / "clips", counts.sft, counts.rl, counts.eval,
            seed=self.config.seed, world=self.world, progress=progress,
        )  # fmt: skip

    def train_siglip(self) -> None:
        """On the last frame of each clip with its caption, and those of the annotated ones also
        with the description that their chain of thought gives, the kind of text it will judge."""
        frames, texts = [], []
        for split in ("sft", "rl"):
            for index in range(self.config.clips[split]):
                sample = make_sample(self.world, self.config.seed, split, index)
                image = draw_frames(sample.scene)[-1]
                pairs = [sample.caption]
                if split == "sft":
                    pairs += describe(build_target(sample.record), "paper")
                frames += [image] * len(pairs)
                texts += pairs
        settings = self.config.siglip
        tokenizer = siglip_training.make_tokenizer(texts)
        shape = siglip_training.tiny_config(
            len(tokenizer), image_size=settings.image_size, text_length=settings.text_length
        )
        model, _ = siglip_training.train_siglip(
            np.stack(frames), texts, shape, tokenizer,
            num_steps=settings.steps, seed=self.config.seed, progress=_log_loss,
        )  # fmt: skip
        siglip.save_siglip(str(self.folder / "siglip"), model.params, shape, tokenizer)

    def make_model(self) -> None:
        """A random Qwen2.5-VL, small, and a tokenizer of the words of the annotated records."""
        template_file = self.folder / "template.json"
        _write(template_file, json.dumps(self.config.template.to_dict()))
        template = load_template(template_file)
        source, texts = RecordSource(self.clips["sft"]), []
        for record in (source[i] for i in range(len(source))):
            texts += [render_text(build_messages(record, template)), build_target(record)]
        values = self.config.model.to_dict()
        gain = values.pop("init_gain")
        tokenizer = train_tiny_tokenizer(texts, values["vocab_size"])
        ids = {
            f"{name}_token_id": tokenizer.convert_tokens_to_ids(t) for name, t in _CONTROL_TOKENS
        }
        half = values["hidden_size"] // values["num_attention_heads"] // 2
        sections = {
            "type": "mrope",
            "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
        }
        values["vision_fullatt_block_indexes"] = list(range(values["vision_depth"]))
        values |= {"vision_out_hidden_size": values["hidden_size"], "rope_scaling": sections} | ids
        config = parse_config(tiny_values(**values))
        quick = {"xla_backend_optimization_level": 0}  # it runs once
        init = jax.jit(functools.partial(vlm.init_params, config), compiler_options=quick)
        params = init(jax.random.key(self.config.seed))
        # 0.02 is the scale of models a hundred times as wide.
        params = jax.tree.map(lambda leaf: leaf * gain if leaf.ndim > 1 else leaf, params)
        folder = self.folder / "model"
        shutil.rmtree(folder, ignore_errors=True)  # half of it, of a demo that was killed here
        write_checkpoint(folder, params, config)
        tokenizer.save_pretrained(folder)

    def train(self, name: str, config: ConfigDict) -> None:
        """SFT or GRPO to its last step, then the folder that the next stage starts from."""
        folder = str(self.folder / name)
        (self.run_grpo if name == "grpo" else self.run_sft)(config, folder)
        if not (self.folder / name / "hf").exists():  # it appears whole
            export.export(folder, f"{folder}/hf")

    def train_longer(self) -> None:
        """Control: SFT from where GRPO began, for as long as GRPO took, compiling aside."""
        seconds = {name: _read_steps(self.folder / name) for name in ("sft", "grpo")}
        spent = statistics.median(seconds["grpo"]) * len(seconds["grpo"])
        steps = max(1, round(spent / statistics.median(seconds["sft"])))
        planned = self.folder / "more_sft_steps"
        if not planned.exists():
            _write(planned, f"{steps}\n")
        config = self.sft_config("sft/hf")
        config.train.max_steps = int(planned.read_text())
        self.train("more_sft", config)

    def evaluate(self, name: str, checkpoint: str, blank: bool = False) -> None:
        """Greedy answers of a stage's model, or of the random one, to the held-out questions."""
        config = self.sft_config("model")
        config.name = f"evaluation, {name}"
        config.data.records, config.data.epochs = self.clips["eval"], 1
        config.data.rows, config.data.row_tokens = 50, 4 * config.data.row_tokens
        config.evaluate.checkpoint = str(self.folder / checkpoint) if checkpoint else ""
        config.evaluate.max_new_tokens = self.config.grpo.rollout.max_new_tokens
        config.evaluate.blank = blank
        config.rollout.num_buckets = 1
        self.run_evaluation(config, str(self.folder / "evaluations" / name))

    # Configs

    def sft_config(self, init_from: str) -> ConfigDict:
        return self._stage(self.config.sft, init_from, self.clips["sft"])

    def grpo_config(self) -> ConfigDict:
        config = self._stage(self.config.grpo, "sft/hf", self.clips["rl"])
        config.reward.siglip = str(self.folder / "siglip")
        return config

    def _stage(self, section, init_from, records):
        config = ConfigDict(section.to_dict())
        config.seed = self.config.seed
        config.model.init_from = str(self.folder / init_from)
        config.data.records = records
        config.data.template_file = str(self.folder / "template.json")
        return config

    def report(self) -> str:
        """The table, written as results.json and report.md too."""
        seconds = {path.name: float(path.read_text()) for path in (self.folder / "done").iterdir()}
        rows = {}
        for name in ("before", "after_sft", "after_grpo", "after_more_sft", "blank"):
            path = self.folder / "evaluations" / name / "completions.jsonl"
            rows[name] = [json.loads(line) for line in path.read_text().splitlines()]
        kinds = [
            self.world.questions[row["index"] % len(self.world.questions)] for row in rows["before"]
        ]
        results = compare(rows, kinds) | {"seconds": seconds, "seed": self.config.seed}
        lines = (self.folder / "grpo/metrics.jsonl").read_text().splitlines()
        sampled = [json.loads(line)["rewards/accuracy/mean"] for line in lines]
        tenth = max(1, len(sampled) // 10)
        results["sampled"] = [float(np.mean(part)) for part in (sampled[:tenth], sampled[-tenth:])]
        _write(self.folder / "results.json", json.dumps(results, indent=1))
        text = format_report(results, self.folder)
        _write(self.folder / "report.md", text)
        return text


def _read_steps(folder: pathlib.Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["perf/step_s"] for line in lines]


def _log_loss(step, total, loss):
    if step % max(1, total // 10) == 0:
        log.info("siglip: step %d/%d  loss %.3f", step, total, loss)


def _write(path: pathlib.Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
