"""What depends on the platform, chosen once and handed down.

A CPU, a TPU and a GPU want one program laid out in different ways: other attention kernels, other
chunk sizes, loops over layers or layers one after another. The numbers are the same with every
plan. The model and the losses are told what to do and never ask which platform they are on.
"""

import dataclasses

from videorft_jax.models.attention.dispatch import IMPLEMENTATIONS, resolve
from videorft_jax.ops.masked import CHUNK, CPU_CHUNK

MAX_UNROLLED = 8  # layers; a deeper tower laid out one after another takes too long to compile
# XLA for CPU uses half of each register of AVX-512 unless it is told otherwise, which takes a few
# per cent longer on an Intel Xeon. A processor without AVX-512 ignores the option.
_COMPILER_OPTIONS = {"cpu": {"xla_cpu_prefer_vector_width": 512}}


@dataclasses.dataclass(frozen=True)
class ComputePlan:
    """How a program is laid out.

    attention: the path that `attention.dispatch` takes, never "auto".
    head_chunk: positions of a row whose logits are alive at once.
    unroll: a stack of at most so many layers is laid out one after another instead of looped over;
        0 loops over every stack.
    skip_last_layer: whether the decoder's last layer leaves out the positions whose hidden states
        nobody reads.
    """

    attention: str
    head_chunk: int = CHUNK
    unroll: int = 0
    skip_last_layer: bool = False


def choose_plan(attention: str = "auto") -> ComputePlan:
    """The plan for the option `model.attention`; "auto" stands for the default backend.

    The path "chunked" is made for CPUs, where a loop over layers copies whatever it keeps for the
    backward pass and where every position that is left out saves time. Raises ValueError for a name
    that is not in `dispatch.IMPLEMENTATIONS`.
    """
    if attention not in IMPLEMENTATIONS:
        raise ValueError(f"attention is {attention!r}; choose one of {IMPLEMENTATIONS}")
    path = resolve(attention)
    if path == "chunked":
        return ComputePlan(path, CPU_CHUNK, unroll=MAX_UNROLLED, skip_last_layer=True)
    return ComputePlan(path)


def compiler_options(platform: str) -> dict[str, int]:
    """Gives XLA's options, by name, for the programs of rollout and update on a platform, which is
    named as JAX names it, such as "cpu"."""
    return _COMPILER_OPTIONS.get(platform, {})
