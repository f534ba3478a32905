"""Running attention on each device's own rows and heads."""

import jax
from jax.sharding import PartitionSpec as P


def per_device(run, q, k, v, rows):
    """`run(q, k, v, rows)` on every device's own rows, over (data, fsdp), and heads, over tensor;
    `rows` is a tree of arrays [B, ...]. For what XLA can't partition by itself: kernels, and loops
    over rows, which it would gather."""
    if not jax.sharding.get_abstract_mesh().empty:
        split = P(("data", "fsdp"))
        heads = P(*split, None, "tensor")
        run = jax.shard_map(
            run, in_specs=(heads, heads, heads, split), out_specs=heads, check_vma=False
        )
    return run(q, k, v, rows)
