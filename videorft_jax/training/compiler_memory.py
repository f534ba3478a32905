"""Gives the memory back that the compiler leaves behind."""

import ctypes
import functools
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_SHORT_S = 1.0  # Programs that compile faster than this leave too little to look for.


@functools.cache
def give_back_memory() -> None:
    """Returns free memory to the system whenever a program was compiled; once a process is enough.

    XLA's compiler allocates in many threads, and glibc keeps what each of them has freed: a step
    of training on a CPU holds several hundred megabytes of it from its first step on, beside its
    own. Where the C library is not glibc, nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == _COMPILED and seconds > _SHORT_S:
            trim(ctypes.c_size_t(0))

    jax.monitoring.register_event_duration_secs_listener(listen)
