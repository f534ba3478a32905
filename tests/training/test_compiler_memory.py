"""What a compile leaves behind goes back to the system."""

import ctypes
import resource

import jax
import pytest

from videorft_jax.training.compiler_memory import give_back_memory

COMPILED = "/jax/core/compile/backend_compile_duration"
BLOCK, BLOCKS = 64 << 10, 2000  # 125 MiB, each block from the heap and not from a map of its own


def resident():
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    ("event", "seconds", "is_given_back"),
    [(COMPILED, 2.0, True), (COMPILED, 0.1, False), ("/jax/core/compile/other", 2.0, False)],
)
def test_freed_memory_goes_back_after_a_compile(event, seconds, is_given_back):
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("only glibc keeps what is freed, and can be told to give it back")
    give_back_memory()
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.malloc_trim(ctypes.c_size_t(0))  # what other tests left
    blocks = [libc.malloc(BLOCK) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    for block in blocks[:-1]:  # The last one keeps the others below the top of the heap.
        libc.free(block)
    before = resident()
    jax.monitoring.record_event_duration_secs(event, seconds)
    share = (before - resident()) / (BLOCK * BLOCKS)
    libc.free(blocks[-1])
    assert share > 0.8 if is_given_back else share < 0.2
