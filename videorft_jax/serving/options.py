"""The limits of a server."""

import dataclasses
import math

_MOST_CHUNK = 1024  # Every place of a chunk has room on the device, and requests wait to join.


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """What a server allows, and how it decodes.

    Attributes:
      name: what the model is called in requests and replies.
      roots: folders whose files a `file://` URL may name; none: no file is read.
      api_key: what `Authorization: Bearer` must hold; "" asks for none.
      system: system turn of chats that have none, in place of the model's own.
      max_body: most bytes of a request's body. max_queue: most completions that wait for a place.
      max_slots: most completions that are decoded side by side.
      max_prompt: most tokens of a prompt. max_new_tokens: most tokens of a completion.
      max_media: most clips and pictures of one request.
      timeout_s: most seconds from a request's arrival to the end of its reply.
      chunk: tokens that are drawn between two moments at which requests join, leave or are told.
      cache_bytes: memory for prompts and clips that later requests may hold again, on the device.
    """

    name: str = "videorft"
    roots: tuple[str, ...] = ()
    api_key: str = dataclasses.field(default="", repr=False)
    system: str = ""
    max_body: int = 64 << 20
    max_queue: int = 256
    max_slots: int = 32
    max_prompt: int = 16384
    max_new_tokens: int = 2048
    max_media: int = 256
    timeout_s: float = 600.0
    chunk: int = 8
    cache_bytes: int = 1 << 30

    def __post_init__(self):
        counts = ("max_body", "max_queue", "max_slots", "max_prompt", "max_new_tokens", "chunk")
        for name in (*counts, "max_media", "timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"serve: {name} is {getattr(self, name)}; give a positive number")
        if self.chunk > _MOST_CHUNK:
            raise ValueError(f"serve: chunk is {self.chunk}; give at most {_MOST_CHUNK}")
        if self.cache_bytes < 0:
            raise ValueError(f"serve: cache_bytes is {self.cache_bytes}; give 0 (none) or a size")
