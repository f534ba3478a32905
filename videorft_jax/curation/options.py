"""The options of a curation, checked as a whole before anything is read."""

import dataclasses
from collections.abc import Mapping

from videorft_jax.curation.budget import Limits
from videorft_jax.curation.endpoints import Endpoint
from videorft_jax.curation.licences import SourceTerms
from videorft_jax.data.media.contract import MediaContract

STAGES = ("describe", "think", "revise")
PROBES = ("rollouts", "blind", "few_frames")  # what difficulty is measured by


@dataclasses.dataclass(frozen=True)
class CurationOptions:
    """Everything that one run of `videorft curate` is asked to do.

    Attributes:
      records, data_root: the pool. benchmarks: (name or record file, data root) of what must
      not leak in.
      endpoints: by stage: describe, think and revise.
      templates: folder of templates that replace the project's own, "" for none.
      contract: how clips become frames. people: whether people's looks are described.
      attempts: chains asked for each question. revise_frames: frames that the reviser sees.
      least_kept: least share of words that a revision keeps.
      similarity: hold open answers against those of other questions, see agreement.py.
      least_words, most_words: bounds on the length of a chain.
      gates: accuracy by problem type that an answer must exceed; 0 for a type not named.
      most_alike: chains of nearly the same words that are accepted.
      tokenizer: folder of the student's, by which the card counts; "" counts words.
      difficulty: work directories of `videorft pass_rate` by probe, see difficulty.py.
      val_fraction: share of the clips that is held out of both sets.
      licences: terms of each source of the pool, for the card.
      limits: what may be spent. isolate: decode in processes that can be killed.
    """

    records: str
    data_root: str
    endpoints: dict[str, Endpoint]
    contract: MediaContract
    gates: dict[str, float]
    benchmarks: tuple[tuple[str, str], ...] = ()
    templates: str = ""
    people: bool = False
    attempts: int = 1
    revise_frames: int = 16
    least_kept: float = 0.3
    similarity: bool = True
    least_words: int = 20
    most_words: int = 900
    most_alike: int = 200
    tokenizer: str = ""
    difficulty: Mapping[str, str] = dataclasses.field(default_factory=dict)
    val_fraction: float = 0.02
    licences: Mapping[str, SourceTerms] = dataclasses.field(default_factory=dict)
    limits: Limits = Limits()
    isolate: bool = True

    def __post_init__(self):
        def require(ok, what):
            if not ok:
                raise ValueError(f"curate: {what}")

        require(self.records, "data.records is empty; give the file of the pool")
        require(set(self.endpoints) == set(STAGES), f"give an endpoint to each of {STAGES}")
        require(1 <= self.attempts <= 16, f"attempts is {self.attempts}; give 1 to 16")
        require(0 <= self.least_kept <= 1, f"least_kept is {self.least_kept}; give 0 to 1")
        require(0 <= self.val_fraction < 1, f"val_fraction {self.val_fraction}; give 0 to below 1")
        require(1 <= self.least_words < self.most_words, "need 1 <= least_words < most_words")
        require(self.most_alike >= 1, "most_alike is below 1; accept one of each chain")
        require(self.revise_frames >= 1, "revise_frames is below 1; the reviser needs to see")
