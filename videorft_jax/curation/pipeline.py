"""The pipeline of one record, from its clip to a verdict, as one generator of requests.

Sets and files are made by replaying it over the store, so that they are functions of records,
options and store, whatever order the replies came in.
"""

import dataclasses
from collections.abc import Generator

from videorft_jax.curation import chains, leaks
from videorft_jax.curation.describe import Describer
from videorft_jax.curation.frames import Frames
from videorft_jax.curation.language import MOST_FOREIGN, foreign_share
from videorft_jax.curation.options import CurationOptions
from videorft_jax.curation.pool import Entry
from videorft_jax.curation.prompts import load_families, load_templates
from videorft_jax.curation.requests import Dead, Reply, Request
from videorft_jax.curation.store import Store
from videorft_jax.data.media.contract import MediaError

MOST_REPEATED = 0.2  # share of a chain's runs of four words


@dataclasses.dataclass
class Outcome:
    """What became of a record: the rows of its stages and how it ended.

    ended: accepted, or the stage or check that it ended in: media, describe, think, answer, revise
    or the name of a check. reason: the code of the dead letter or of the media error.
    """

    ended: str = ""
    reason: str = ""
    describe: dict | None = None
    think: list[dict] = dataclasses.field(default_factory=list)
    revise: dict | None = None
    checks: dict[str, dict] = dataclasses.field(default_factory=dict)


class Pipeline:
    """The stages under one set of options; `root` is the folder of the media."""

    def __init__(self, options: CurationOptions, root: str, store: Store):
        self.options, self.root, self.store = options, root, store
        self.templates = load_templates(options.templates)
        self.describer = Describer(
            options.endpoints["describe"], self.templates, load_families(options.templates),
            options.contract.digest, options.people,
        )  # fmt: skip

    def curate(self, entry: Entry) -> Generator[Request, Reply | Dead, Outcome]:
        options, record, out = self.options, entry.record, Outcome()
        try:
            frames = Frames(entry, self.root, options.contract, self.store, options.isolate)
        except MediaError as error:
            out.ended, out.reason = "media", error.reason
            return out
        found = yield from self.describer.describe(entry, frames)
        if isinstance(found, Dead):
            return self._end(out, "describe", found)
        out.describe = found
        found = yield from chains.think(
            entry, out.describe["description"], options.endpoints["think"],
            self.templates["think"], options.attempts,
        )  # fmt: skip
        if isinstance(found, Dead):
            return self._end(out, "think", found)
        out.think = found
        gate = options.gates.get(record.problem_type, 0.0)
        right = chains.choose(found, gate, record.problem_type == "multiple choice")
        if right is None:
            out.ended = "answer"
            return out
        found = yield from chains.revise(
            entry, right["cot0"], frames, options.endpoints["revise"], self.templates["revise"],
            options.contract.digest, options.revise_frames,
        )  # fmt: skip
        if isinstance(found, Dead):
            return self._end(out, "revise", found)
        kept = leaks.kept_share(right["cot0"], found["cot"])
        out.revise = {
            "record": entry.name,
            "attempt": right["attempt"],
            "kept_share": round(kept, 4),
            **found,
        }
        out.checks = self._check(found["cot"], kept, entry)
        failed = [name for name, check in out.checks.items() if not check["ok"]]
        out.ended = failed[0] if failed else "accepted"
        return out

    def count_windows(self, entry: Entry) -> int:
        """How many requests the description of a clip takes that can be read."""
        if entry.record.data_type == "image":
            return 1
        options = self.options
        frames = Frames(entry, self.root, options.contract, self.store, options.isolate)
        return self.describer.count_windows(frames)

    def _end(self, out: Outcome, stage: str, dead: Dead) -> Outcome:
        out.ended, out.reason = stage, dead.reason
        return out

    def _check(self, chain: str, kept: float, entry: Entry) -> dict[str, dict]:
        """The checks of stage 4 in their order, the cheap ones first."""
        options, words = self.options, chain.split()
        other = leaks.other_conclusion(chain, entry.record)
        broken = leaks.find_leaks(chain, entry.record)
        asked = (entry.record.problem, *entry.record.options, entry.record.solution)
        foreign = foreign_share(chain, *asked)
        repeated = leaks.repeated_share(words)
        is_long = options.least_words <= len(words) <= options.most_words
        return {
            "conclusion": {"ok": not other, "value": other},
            "leaks": {"ok": not broken, "value": broken, "version": leaks.VERSION},
            "language": _limit(foreign <= MOST_FOREIGN, foreign, MOST_FOREIGN),
            "length": _limit(is_long, len(words), [options.least_words, options.most_words]),
            "repetition": _limit(repeated < MOST_REPEATED, repeated, MOST_REPEATED),
            "revision": _limit(kept >= options.least_kept, kept, options.least_kept),
        }


def _limit(ok: bool, value: float, limit: object) -> dict:
    return {"ok": bool(ok), "value": round(value, 4), "limit": limit}
