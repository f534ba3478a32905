"""What a user chooses about an evaluation, checked when it is made."""

import dataclasses

from videorft_jax.rewards.accuracy import check_mode


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """The choices of one evaluation; `commands/evaluate.py` reads them from a config.

    name: what errors call the recipe. checkpoint: the work directory of a run, or a step in it;
    "" for the weights of a Hugging Face folder. ema: evaluate the average of the checkpoint's
    weights. other_media: allow a media contract that the checkpoint was not trained under. blank:
    show clips without content. limit: number of records from the beginning, 0 for all.
    num_rollouts, max_new_tokens, temperature, top_p, top_k, min_p: how completions are drawn. mode:
    rules of `rewards.accuracy`. seed: of the draws. interval_s: seconds between lines of progress.

    Raises ValueError for a value that no evaluation can have.
    """

    name: str
    checkpoint: str
    ema: bool
    other_media: bool
    blank: bool
    limit: int
    num_rollouts: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    mode: str
    seed: int
    interval_s: float

    def __post_init__(self):
        check_mode(self.mode)
        if self.limit < 0:
            raise ValueError(f"{self.name}: evaluate.limit is {self.limit}; give at least 0")
        if self.ema and not self.checkpoint:
            raise ValueError(
                f"{self.name}: evaluate.ema is of a checkpoint; give evaluate.checkpoint"
            )

    def deciding(self) -> dict[str, object]:
        """The options that decide what the completions are, for the settings of the results. The
        weights stand there by themselves, and so do the rules of the score and the seed. A top_k
        and a min_p that are off are left out, as earlier releases had none."""
        other = ["name", "checkpoint", "other_media", "mode", "seed", "interval_s"]
        other += [name for name in ("top_k", "min_p") if not getattr(self, name)]
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in other}
