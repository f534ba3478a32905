"""Keeps a reply to a JSON schema: it says before each token which ids may follow.

The work is done by llguidance (https://github.com/guidance-ai/llguidance), which compiles a schema
to a parser over the bytes of the tokenizer's vocabulary.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from videorft_jax.serving.errors import Refused

# A small model may put white space without end, so that only the form of Python's `json.dumps`
# is allowed.
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Guide:
    """What one reply may go on with; a guide belongs to one completion."""

    def __init__(self, matcher):
        self._matcher = matcher

    def copy(self) -> "Guide":
        """A guide of the same schema that stands at the same place."""
        return Guide(self._matcher.deep_copy())

    def write(self, mask: np.ndarray) -> None:
        """Writes which ids may follow into uint32 [ceil(V / 32)], id 0 in the lowest bit."""
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)

    def take(self, ids: Iterable[int]) -> None:
        """Goes on behind the tokens that were drawn. Raises Refused where the reply has become too
        complex to be followed."""
        if not self._matcher.consume_tokens(list(ids)):
            fault = " ".join(self._matcher.get_error().split())[:300]
            raise Refused(500, f"response_format: the reply cannot be followed: {fault}")


class Grammars:
    """Makes the guides of one tokenizer; V is the size of the model's vocabulary."""

    def __init__(self, tokenizer, vocab_size: int, stop_ids: Iterable[int]):
        import llguidance.hf

        self._kind = llguidance.LLMatcher
        self._tokenizer = llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=vocab_size, eos_token=list(stop_ids)
        )

    def make(self, schema: Mapping[str, Any]) -> Guide:
        """The guide at the begin of a reply.

        schema: a JSON schema; an empty one means any object. Raises Refused where the schema is
        none, uses what cannot be enforced, or has no value that follows it.
        """
        asked = schema or {"type": "object"}
        try:
            text = self._kind.grammar_from_json_schema(json.dumps(asked), overrides=_FORM)
            matcher = self._kind(self._tokenizer, text, log_level=0)
            fault = matcher.get_error()
        except (ValueError, RecursionError) as error:
            fault = str(error)
        if not fault:
            matcher.compute_bitmask()  # only then is it known whether anything may follow
            if matcher.is_stopped() and not matcher.is_accepting():
                fault = "no value follows it"
        if fault:
            fault = " ".join(fault.split())[:300]
            raise Refused(
                400, f"response_format: the schema cannot be enforced: {fault}", "response_format"
            )
        return Guide(matcher)
