"""What the server has done so far, in the text form that Prometheus reads."""

import collections
import time

from videorft_jax.serving.batcher import Batcher
from videorft_jax.serving.clips import Clips

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Counts:
    """Counters of requests by how they ended, and gauges of the batcher."""

    def __init__(self, batcher: Batcher, clips: Clips):
        self.batcher, self.clips = batcher, clips
        self.ended: collections.Counter[str] = collections.Counter()
        self.prompt_tokens = 0
        self.first_s: list[int] = [0] * (len(_BUCKETS) + 1)  # first texts by their delay
        self.first_sum = 0.0

    def add(self, how: str) -> None:
        """Counts one request that ended without a whole reply."""
        self.ended[how] += 1

    def see_text(self, chat, is_text: bool) -> None:
        """Takes the delay of the first text of a request, counted from when its media were read."""
        if is_text and not chat.is_seen:
            chat.is_seen = True
            delay = time.monotonic() - chat.born
            self.first_s[sum(delay > bound for bound in _BUCKETS)] += 1
            self.first_sum += delay

    def finish(self, chat) -> None:
        """Counts one whole reply."""
        self.ended["done"] += 1
        self.prompt_tokens += chat.laid.num_tokens

    def render(self) -> str:
        """The page of /metrics."""
        batcher, prompts = self.batcher, self.batcher.prompts
        lines = ["# TYPE videorft_requests_total counter"]
        lines += [
            f'videorft_requests_total{{ended="{how}"}} {count}'
            for how, count in sorted(self.ended.items())
        ]
        for name, kind, value in (
            ("prompt_tokens_total", "counter", self.prompt_tokens),
            ("completion_tokens_total", "counter", batcher.num_tokens),
            ("decode_steps_total", "counter", batcher.num_steps),
            ("busy_seconds_total", "counter", round(batcher.busy_s, 3)),
            ("prefilled_tokens_total", "counter", prompts.run_tokens),
            ("reused_tokens_total", "counter", prompts.reused_tokens),
            ("reused_prompts_total", "counter", prompts.reused_prompts),
            ("decoded_clips_total", "counter", self.clips.num_read),
            ("encoded_clips_total", "counter", prompts.encoded_clips),
            ("reused_clips_total", "counter", prompts.reused_clips),
            ("active_completions", "gauge", batcher.num_active),
            ("waiting_completions", "gauge", len(batcher.waiting)),
            ("cache_bytes", "gauge", prompts.prompts.held + prompts.clips.held),
        ):
            lines += [f"# TYPE videorft_{name} {kind}", f"videorft_{name} {value}"]
        return "\n".join([*lines, *self._first(), ""])

    def _first(self):
        name = "videorft_first_text_seconds"
        yield f"# TYPE {name} histogram"
        so_far = 0
        for bound, count in zip((*_BUCKETS, "+Inf"), self.first_s, strict=True):
            so_far += count
            yield f'{name}_bucket{{le="{bound}"}} {so_far}'
        yield f"{name}_sum {self.first_sum:.6f}"
        yield f"{name}_count {so_far}"
