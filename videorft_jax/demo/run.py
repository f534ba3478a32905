"""The whole method in minutes on two CPU cores, from H.264 files to a Hugging Face folder.

Annotated chains of thought are scarce, questions with checkable answers are not: SFT sees few clips
many times, GRPO many fresh ones, with all rewards. Both are judged on held-out clips, beside two
controls: as much more time spent on SFT with the same chains, and the model without its video.
Every stage calls another command as a user would. A stage that is done is skipped and one that was
stopped goes on, so the same command finishes the demo.
"""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import statistics
import time

from videorft_jax.data.records.prompts import load_template
from videorft_jax.demo.dataset import SPLITS, write_dataset
from videorft_jax.demo.options import Commands, DemoOptions, Stage
from videorft_jax.demo.report import ANSWERS, REPORT, collect, format_report
from videorft_jax.demo.tiny_models import write_model, write_siglip
from videorft_jax.reporting.report import ReportOptions, write_report

log = logging.getLogger(__name__)

_FILMS_MIB = 8  # films of a page, about a thousand clips


class Demo:
    """One seed of the demo in one work directory."""

    def __init__(self, options: DemoOptions, workdir: str, commands: Commands):
        self.options, self.folder, self.commands = options, pathlib.Path(workdir), commands
        self.clips = {split: str(self.folder / f"clips/{split}.jsonl") for split in SPLITS}
        self.template_file = self.folder / "template.json"

    def run(self) -> int:
        """Returns exit code 0; SIGTERM ends SFT and GRPO as it ends them alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        call = functools.partial
        stages = (
            ("clips", self.write_clips),
            ("siglip", call(write_siglip, self.options, self.folder / "siglip")),
            ("model", self.make_model),
            ("before", call(self.evaluate, "before", "")),
            ("sft", call(self.train_sft, "sft", "model")),
            ("after_sft", call(self.evaluate, "after_sft", "sft")),
            ("grpo", self.train_grpo),
            ("after_grpo", call(self.evaluate, "after_grpo", "grpo")),
            ("blank", call(self.evaluate, "blank", "grpo", blank=True)),
            ("more_sft", self.train_longer),
            ("after_more_sft", call(self.evaluate, "after_more_sft", "more_sft")),
        )
        for number, (name, stage) in enumerate(stages, 1):
            self.once(name, stage, f"[{number}/{len(stages)}]")
        print(self.report())
        self.write_pages()
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

    def write_clips(self) -> None:
        """Writes the clips and records of all splits."""

        def progress(done, total):
            if done % max(1, total // 10) < max(1, total // 100):
                log.info("clips: %d of %d", done, total)

        counts = [self.options.num_clips[split] for split in SPLITS]
        write_dataset(
            self.folder / "clips", *counts,
            seed=self.options.seed, world=self.options.world, progress=progress,
        )  # fmt: skip

    def make_model(self) -> None:
        """Writes the prompt template and the random model that SFT starts from."""
        _write(self.template_file, json.dumps(dict(self.options.template)))
        template = load_template(self.template_file)
        write_model(self.options, self.clips["sft"], template, self.folder / "model")

    def train_sft(self, name: str, init_from: str, max_steps: int | None = None) -> None:
        self.commands.sft(self._stage(name, init_from, "sft"), max_steps)
        self._export(name)

    def train_grpo(self) -> None:
        self.commands.grpo(self._stage("grpo", "sft/hf", "rl"), self.folder / "siglip")
        self._export("grpo")

    def train_longer(self) -> None:
        """Control: SFT from where GRPO began, for as long as GRPO took, compiling aside."""
        planned = self.folder / "more_sft_steps"
        if not planned.exists():
            seconds = {name: _read_steps(self.folder / name) for name in ("sft", "grpo")}
            spent = statistics.median(seconds["grpo"]) * len(seconds["grpo"])
            steps = max(1, round(spent / statistics.median(seconds["sft"])))
            _write(planned, f"{steps}\n")
        self.train_sft("more_sft", "sft/hf", int(planned.read_text()))

    def evaluate(self, name: str, run: str, *, blank: bool = False) -> None:
        """Writes greedy answers of a run's model, or of the random one, to held-out questions."""
        checkpoint = self.folder / run if run else None
        stage = self._stage(f"evaluations/{name}", "model", "eval")
        self.commands.evaluate(stage, checkpoint, blank)

    def report(self) -> str:
        """The table, written as results.json and report.md too."""
        questions = self.options.world.questions
        results = collect(self.folder, questions) | {"seed": self.options.seed}
        _write(self.folder / "results.json", json.dumps(results, indent=1))
        text = format_report(results, self.folder)
        _write(self.folder / "report.md", text)
        return text

    def write_pages(self) -> None:
        """Writes the gallery of GRPO, and that of the held-out answers before and after it."""
        options = ReportOptions(films_mib=_FILMS_MIB)
        write_report([self.folder / "grpo"], self.folder / REPORT, options)
        answers = [self.folder / "evaluations" / name for name in ("after_sft", "after_grpo")]
        options = dataclasses.replace(options, records=self.clips["eval"])
        write_report(answers, self.folder / ANSWERS, options)

    def _stage(self, name, init_from, split):
        return Stage(
            self.folder / name, self.folder / init_from, self.clips[split], self.template_file
        )

    def _export(self, name):
        folder = self.folder / name / "hf"
        if not folder.exists():  # it appears whole
            self.commands.export(str(self.folder / name), str(folder))


def _read_steps(folder: pathlib.Path) -> list[float]:
    """Seconds of every step of a run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["perf/step_s"] for line in lines]


def _write(path: pathlib.Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
