"""Random hidden states, output head, targets and mask, from which losses are computed."""

import jax

B, T, D, V = 3, 23, 8, 41


def draw(seed=0, rows=B, words=V):
    """Returns hidden [rows, T, D], head [words, D], targets and mask [rows, T].

    Row 1 has no target.
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (rows, T, D))
    head = jax.random.normal(keys[1], (words, D))
    targets = jax.random.randint(keys[2], (rows, T), 0, words)
    mask = jax.random.bernoulli(keys[3], 0.4, (rows, T)).at[1].set(False)
    return hidden, head, targets, mask
