"""The attention kernel of this accelerator beside dense attention: error and time.

python benchmarks/attention.py [--path flash] [--rounds 10] [--json]

At the head sizes of 7B: packed rows, a group's row and the vision tower's full layers, bfloat16,
forward and backward. Errors are of the norm, |x - exact| / |exact| with `exact` dense in float32;
beside them those of dense attention in bfloat16, which no kernel has to beat. Ends with code 1 when
an error is more than 2.5 times that: a kernel rounds probabilities and their gradients once more.
XLA fuses no dense scores, so times are not a contest.
"""

import argparse
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from peer import machine
from published import median_seconds

from videorft_jax.models.attention import dispatch
from videorft_jax.models.attention.masks import Causal, Full, SharedPrefix

PROMPT, ROLLOUTS, LENGTH = 1152, 8, 256


def cases():
    """name -> (mask, real queries [B, T], (N, K, H))."""
    packed = np.ones((2, 2048), np.int32)
    packed[0, 900:], packed[1, 1800:] = 2, 0
    group = np.ones((2, PROMPT + ROLLOUTS * LENGTH), np.int32)
    group[0, 1000:PROMPT] = 0
    group[1, PROMPT + 100 : PROMPT + LENGTH] = 0
    valid = np.ones((16, 512), bool)
    valid[3, 200:] = False
    return {
        "causal": (Causal(jnp.asarray(packed)), packed > 0, (28, 4, 128)),
        "shared": (SharedPrefix(jnp.asarray(group), PROMPT, ROLLOUTS), group > 0, (28, 4, 128)),
        "full": (Full(jnp.asarray(valid)), valid, (16, 16, 80)),
    }


def run(function, q, k, v, cotangent):
    out, backward = jax.vjp(function, q, k, v)
    return out, *backward(cotangent.astype(out.dtype))


def error(got, exact, real):
    """Compares what real tokens get; the values of padding do not matter."""
    got, exact = (np.asarray(x, np.float32)[real] for x in (got, exact))
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", default="auto")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    path = dispatch.resolve(options.path)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, path {path}")
    right, times = True, {"ours": {}, "peer": {}}
    for name, (mask, real, (heads, kv_heads, dim)) in cases().items():
        keys, shape = jax.random.split(jax.random.key(0), 4), real.shape
        inputs = [
            jax.random.normal(key, (*shape, count, dim))
            for key, count in zip(keys, (heads, kv_heads, kv_heads, heads), strict=True)
        ]
        inputs[3] *= real[..., None, None]
        rounded = [x.astype(jnp.bfloat16) for x in inputs]
        wide = [x.astype(jnp.float32) for x in rounded]
        dense = jax.jit(
            functools.partial(run, lambda *a, m=mask: dispatch.reference(*a, m.allowed()))
        )
        fast = jax.jit(functools.partial(run, lambda *a, m=mask: dispatch.attention(*a, m, path)))
        with jax.default_matmul_precision("highest"):
            exact = dense(*wide)
        for part, ours, theirs, true in zip(
            ("out", "dq", "dk", "dv"), fast(*rounded), dense(*rounded), exact, strict=True
        ):
            errors = error(ours, true, real), error(theirs, true, real)
            right &= errors[0] < 2.5 * errors[1]  # a NaN compares as false
            print(f"{name:7} {part:3} error {errors[0]:.2e}, dense bfloat16 {errors[1]:.2e}")
        seconds = [
            median_seconds(functools.partial(f, *rounded), options.rounds) for f in (fast, dense)
        ]
        times["ours"][f"{name}_s"], times["peer"][f"{name}_s"] = seconds
        print(f"{name:7} {path} {seconds[0] * 1e3:.2f} ms, dense {seconds[1] * 1e3:.2f} ms")
    print("right" if right else "WRONG")
    if options.json:
        ratio = {name: times["peer"][f"{name}_s"] / times["ours"][f"{name}_s"] for name in cases()}
        shape = {"prompt": PROMPT, "rollouts": ROLLOUTS, "completion": LENGTH, "path": path}
        print(json.dumps({"machine": machine(), "shape": shape, **times, "ratio": ratio}))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
