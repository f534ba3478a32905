"""What a run would ask, and what that would cost: counted where the store says so, else expected.

Requests that can be made now are counted one by one. Those that follow from replies are expected:
chains by the attempts that are asked for, revisions by the share of right chains. That share and
the tokens of a request are measured on the replies in the store, so that an estimate after a sample
is one of these clips and these models; before it they are assumptions, and are called so.
"""

import collections
import dataclasses
from collections.abc import Iterable

from videorft_jax.curation.budget import Ledger
from videorft_jax.curation.describe import TOKENS_A_FRAME
from videorft_jax.curation.options import STAGES
from videorft_jax.curation.pipeline import Pipeline
from videorft_jax.curation.pool import Entry
from videorft_jax.curation.requests import Dead, Request, estimate_tokens

ENOUGH = 5  # replies of a stage, or checked records, from which something counts as measured
ACCEPTED = 0.33  # share of the records with a right chain, as in the paper
REPLY_TOKENS = {"describe": 0, "think": 1200, "revise": 900}  # A description goes by its frames.
PROMPT_TOKENS = {"describe": 0, "think": 4000, "revise": 4000}
INPUT_SHARE = 0.75  # A prompt takes about this share of what the budget reserves for it.


@dataclasses.dataclass
class StageEstimate:
    """One stage. stored: replies that are there. known: requests that can be made now. expected:
    those that follow, and most: their largest number. The tokens and nano-dollars are of both;
    most_nano is what they cost at their largest number and length. measured: replies that lengths
    were measured on, 0 where they are assumed. seconds: at the limits a minute, 0 without limits.
    """

    stored: int = 0
    known: int = 0
    expected: float = 0.0
    most: int = 0
    measured: int = 0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    most_output_tokens: float = 0.0
    nano: int = 0
    most_nano: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class Estimate:
    """All stages by name; records that are finished, and by reason those that cannot be asked
    about; share of records with a right chain, and how many it was measured on, 0: assumed."""

    stages: dict[str, StageEstimate]
    finished: int = 0
    refused: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    accepted: float = ACCEPTED
    measured: int = 0

    @property
    def nano(self) -> int:
        return sum(stage.nano for stage in self.stages.values())

    @property
    def most_nano(self) -> int:
        return sum(stage.most_nano for stage in self.stages.values())

    @property
    def tokens(self) -> int:
        both = (stage.input_tokens + stage.output_tokens for stage in self.stages.values())
        return round(sum(both))


class _Tally:
    """Sums over the requests of one stage."""

    def __init__(self):
        self.keys: set[int] = set()  # Keys of missing requests are cut short.
        self.known = self.bounds = self.most_output = self.pictures = 0
        self.count = self.inputs = self.cached = self.outputs = self.answered_bounds = 0

    def miss(self, request: Request, number: int, image_tokens: int) -> None:
        """Counts a missing request, once, as `number` of its kind."""
        short = int(request.key[:16], 16)
        if short not in self.keys:
            self.keys.add(short)
            self.known += number
            self.bounds += number * estimate_tokens(request, image_tokens)
            self.most_output += number * request.max_tokens
            self.pictures += number * len(request.pictures)

    def answer(self, request: Request, reply, image_tokens: int) -> None:
        self.count += 1
        self.inputs += reply.input_tokens
        self.cached += reply.cached_tokens
        self.outputs += reply.output_tokens
        self.answered_bounds += estimate_tokens(request, image_tokens)


def estimate(entries: Iterable[Entry], pipeline: Pipeline, ledger: Ledger) -> Estimate:
    """Walks through the records without asking anything."""
    found = Estimate({name: StageEstimate() for name in STAGES})
    tallies = {name: _Tally() for name in STAGES}
    waiting: collections.Counter = collections.Counter()
    checked = right = 0
    for entry in entries:
        missing, asked, out = _walk(entry, pipeline, tallies)
        if missing is None:
            found.finished += 1
            if out.ended in ("media", "describe") and out.reason:
                found.refused[out.reason] += 1
        else:
            image_tokens, number = _image_tokens(pipeline, missing), 1
            if missing.stage == "describe":
                number = max(pipeline.count_windows(entry) - asked["describe"], 1)
            tallies[missing.stage].miss(missing, number, image_tokens)
            waiting[missing.stage] += 1
            waiting["chains"] += missing.stage == "think" and asked["think"] + 1
        if asked["think"] and (missing is None or missing.stage == "revise"):
            checked += 1
            right += bool(asked["revise"] or missing)
    if checked >= ENOUGH:
        found.accepted, found.measured = right / checked, checked
    attempts, both = pipeline.options.attempts, waiting["describe"] + waiting["think"]
    chains = attempts * both - waiting["chains"]
    counts = dict(pipeline.store.rows("SELECT stage, COUNT(*) FROM response GROUP BY stage"))
    for name, stage in found.stages.items():
        expected = {"think": chains, "revise": both * found.accepted}.get(name, 0)
        most = {"think": chains, "revise": both}.get(name, 0)
        stage.stored, stage.expected, stage.most = counts.get(name, 0), expected, most
        _price(stage, name, tallies[name], ledger)
    return found


def _walk(entry: Entry, pipeline: Pipeline, tallies):
    """(the request that is missing or None, replies by stage, the outcome or None)."""
    work, asked = pipeline.curate(entry), collections.Counter()
    try:
        request = next(work)
        while True:
            reply = pipeline.store.find(request.key)
            if reply is None:
                work.close()
                return request, asked, None
            asked[request.stage] += 1
            if not isinstance(reply, Dead):
                tally = tallies[request.stage]
                tally.answer(request, reply, _image_tokens(pipeline, request))
            request = work.send(reply)
    except StopIteration as end:
        return None, asked, end.value


def _image_tokens(pipeline: Pipeline, request: Request) -> int:
    return pipeline.options.endpoints[request.stage].image_tokens


def _price(stage: StageEstimate, name: str, tally: _Tally, ledger: Ledger) -> None:
    """Fills in tokens, money and time."""
    end = ledger.endpoints[name]
    stage.known = tally.known
    if tally.count >= ENOUGH:
        stage.measured = tally.count
        prompt, said = tally.inputs / tally.count, tally.outputs / tally.count
        share, cached = tally.inputs / tally.answered_bounds, tally.cached / tally.inputs
    else:
        share, cached, prompt = INPUT_SHARE, 0.0, PROMPT_TOKENS[name]
        frames = tally.pictures / max(tally.known, 1)
        said = min(REPLY_TOKENS[name] or TOKENS_A_FRAME * frames, end.max_output)
    requests = stage.known + stage.expected
    stage.input_tokens = tally.bounds * share + stage.expected * prompt
    stage.output_tokens = requests * said
    stage.most_output_tokens = tally.most_output + stage.most * end.max_output
    if end.price:
        inputs = round(stage.input_tokens)
        stage.nano = end.price.cost(inputs, round(stage.output_tokens), round(cached * inputs))
        most_inputs = tally.bounds + round(stage.most * prompt / share)
        stage.most_nano = end.price.cost(most_inputs, stage.most_output_tokens)
    if end.rpm:
        stage.seconds = 60 * requests / end.rpm
    if end.tpm:
        tokens = stage.input_tokens + stage.output_tokens
        stage.seconds = max(stage.seconds, 60 * tokens / end.tpm)
