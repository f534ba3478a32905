"""Our models in lmms-eval, through its entry point `lmms_eval.models`: `--model videorft_jax`.

lmms-eval --model videorft_jax --model_args pretrained=FOLDER --tasks mvbench --batch_size 8 \\
    --gen_kwargs max_new_tokens=1024

lmms-eval is no dependency of ours. It is imported when it asks for the class, which is made then.
What it is told is the bare final answer, since its tasks compare texts and leave answer tags where
they are; the whole outputs go to `raw_file`.
"""

import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from videorft_jax.data.media.contract import MediaError
from videorft_jax.rewards.answers import extract_answer
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import make_sampling

log = logging.getLogger(__name__)

NAME, NO_ANSWER = "videorft_jax", "?"  # "" is left out of, or right in, several tasks
_FEW_SHOT_DELIMITER = "\n\n"  # comes as a stop, and would cut a chain of thought
_MAX_NEW_TOKENS = 1024
_LEAST_AV = 18  # below it the decoder refuses every clip, and every answer would be "?"
_PATHS = ("video_path", "video", "path", "url")


def manifest() -> Any:
    """What the entry point gives to lmms-eval: the model's name and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, chat_class_path=f"{__name__}.LmmsModel")


def __getattr__(name: str) -> Any:
    if name != "LmmsModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return make_class()


def make_class() -> type:
    """The class that lmms-eval runs, a subclass of its own base class."""
    from lmms_eval.api.model import lmms

    class LmmsModel(lmms):
        is_simple = False  # it wants chats, not texts

        def __init__(self, pretrained: str, batch_size: Any = 1, raw_file: str = "", **_: Any):
            super().__init__()
            self.answerer = Answerer(pretrained, max(1, int(batch_size)), raw_file)

        def generate_until(self, requests):
            return self.answerer.answer([(*r.args[1:6], self.task_dict) for r in requests])

        def loglikelihood(self, requests):
            raise NotImplementedError(f"{NAME}: gives no likelihoods; choose a task that generates")

        def generate_until_multi_round(self, requests):
            raise NotImplementedError(f"{NAME}: answers one turn; choose a task of one")

    return LmmsModel


class Answerer:
    """Answers lmms-eval's requests with one model.

    folder: as `vr.load` takes it. batch: requests that are run together. raw_file: JSONL to which
    whole outputs are appended, "" for none.
    """

    def __init__(self, folder: str, batch: int, raw_file: str = ""):
        import av

        import videorft_jax as vr

        if int(av.__version__.split(".")[0]) < _LEAST_AV:
            raise ValueError(
                f"{NAME}: PyAV {av.__version__} cannot read clips as we do; lmms-eval pins one "
                f"that is older than it needs: pip install 'av>={_LEAST_AV},<{_LEAST_AV + 1}'"
            )
        self.model, self.batch, self.raw_file = vr.load(folder, dtype=None), batch, raw_file
        self._engines: dict[str, tuple[RolloutEngine, Any]] = {}

    def answer(self, requests: Sequence[tuple]) -> list[str]:
        """The bare answer of each request, in order; "?" where there is none, or where a clip
        cannot be read, which is logged and ends no run.

        A request is (doc_to_messages, generation settings, id, task, split, all documents).
        """
        answers = []
        for settings, group in itertools.groupby(requests, lambda request: request[1]):
            group = list(group)
            for start in range(0, len(group), self.batch):
                part = group[start : start + self.batch]
                raw = self._generate(part, settings)
                answers += [NO_ANSWER if text is None else bare_answer(text) for text in raw]
                self._write(part, raw, answers[-len(raw) :])
        return answers

    def _generate(self, requests, settings) -> list[str | None]:
        chats, texts = [], [None] * len(requests)
        for place, (to_messages, _, number, task, split, documents) in enumerate(requests):
            try:
                chat = read_chat(to_messages(documents[task][split][number]))
                self.model.prepare([chat])
                chats.append((place, chat))
            except (MediaError, ValueError, OSError) as error:  # OSError: the task's own look.
                log.warning("%s %s: %s", task, number, error)
        if not chats:
            return texts
        engine, params = self._engine(settings)
        batch = self.model.prepare([chat for _, chat in chats])
        out = engine.rollout(params, batch, np.arange(len(chats)), seed=0)
        for row, (place, _) in enumerate(chats):
            ids = out.tokens[row, 0, : out.lengths[row, 0]]
            text = self.model.tokenizer.decode(ids, skip_special_tokens=True)
            texts[place] = cut_at_stops(text, settings.get("until") or ())
        return texts

    def _engine(self, settings):
        """The engine of these settings, which stays, as it keeps its compiled programs."""
        is_sampled = settings.get("do_sample") and settings.get("temperature")
        wanted = {
            "num_rollouts": 1,
            "max_new_tokens": int(settings.get("max_new_tokens") or _MAX_NEW_TOKENS),
            "temperature": float(settings["temperature"]) if is_sampled else 0.0,
            "top_p": float(settings.get("top_p") or 1.0) if is_sampled else 1.0,
        }
        key = json.dumps(wanted)
        if key not in self._engines:
            sampling = make_sampling(self.model.config, self.model.tokenizer, **wanted)
            kind = str(self.model.params["text"]["embed"].dtype)
            engine = RolloutEngine(self.model.config, sampling, self.model.mesh, dtype=kind)
            self._engines[key] = engine, engine.prepare(self.model.params)
        return self._engines[key]

    def _write(self, requests, raw, answers):
        if not self.raw_file:
            return
        with open(self.raw_file, "a", encoding="utf-8") as file:
            for (_, _, number, task, split, _), text, said in zip(
                requests, raw, answers, strict=True
            ):
                row = {"task": task, "split": split, "id": number, "output": text, "answer": said}
                file.write(json.dumps(row) + "\n")


def bare_answer(text: str) -> str:
    """The answer without tags: that of the answer block, else what follows the reasoning, else the
    whole of an output that has neither; "?" where nothing is left or two answers are given."""
    answer = extract_answer(text)
    if answer is None:
        rest = text.rpartition("</think>")[2]
        answer = "" if "<think>" in rest or "<answer>" in rest else rest
    return answer.strip() or NO_ANSWER


def cut_at_stops(text: str, stops: str | Sequence[str]) -> str:
    """The text before the first of the stops; the blank line, which lmms-eval gives for few-shot
    examples, is none."""
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop and stop != _FEW_SHOT_DELIMITER:
            text = text.split(stop)[0]
    return text


def read_chat(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """lmms-eval's messages in the form that `vr.load(...).prepare` takes.

    Raises ValueError for a part that no model of ours can see or hear.
    """
    return [
        {"role": message["role"], "content": list(_read_parts(message["content"]))}
        for message in messages
    ]


def _read_parts(content: Any) -> Iterator[dict[str, Any]]:
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind = part["type"]
        if kind == "text":
            yield {"type": "text", "text": part["text"]}
            continue
        source = part.get("url", part.get(kind))
        times = {"start": part.get("start_time"), "end": part.get("end_time")}
        if isinstance(source, Mapping):
            times = {"start": source.get("video_start"), "end": source.get("video_end")}
            source = next((source[name] for name in _PATHS if name in source), None)
            if source is None:
                raise ValueError(f"{NAME}: a part of type {kind!r} that names no file: {part}")
        suffix = os.path.splitext(source)[1].lower() if isinstance(source, str) else ""
        # lmms-eval goes by suffix: .webm is audio there, and .gif a still image.
        if kind == "video" or suffix in (".webm", ".gif"):
            times = {name: float(value) for name, value in times.items() if value is not None}
            yield {"type": "video", "video": source} | times
        elif kind == "image":
            is_path = isinstance(source, str)
            yield {"type": "image",
                   "image": source if is_path else np.asarray(source.convert("RGB"))}  # fmt: skip
        else:
            raise ValueError(f"{NAME}: a part of type {kind!r} ({source}); it sees, and hears not")
