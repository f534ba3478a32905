"""What each estimator of the divergence pulls towards, in exact expectation over a vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videorft_jax import losses

WORDS = 12


def kl_forward(logits, reference):
    """KL(policy || reference)."""
    p = jax.nn.log_softmax(logits)
    return (jnp.exp(p) * (p - reference)).sum()


def kl_backward(logits, reference):
    """KL(reference || policy)."""
    return (jnp.exp(reference) * (reference - jax.nn.log_softmax(logits))).sum()


@pytest.mark.parametrize(
    ("kl", "pulls"), [("k2", kl_forward), ("k3", kl_backward), ("k3_weighted", kl_forward)]
)
def test_expected_gradient(kl, pulls):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=WORDS), jnp.float32)
    reference = jax.nn.log_softmax(jnp.asarray(rng.normal(size=WORDS) * 1.5, jnp.float32))
    options = losses.LossOptions("grpo", 1.0, kl, 0.2, 0.2, 1, 0.0)
    mask = jnp.ones((1, 1, 1), bool)

    def penalty(logits, word):
        """A completion of one token without advantage, drawn by the policy."""
        logprob = jax.nn.log_softmax(logits)[word].reshape(1, 1, 1)
        given = {"reference": reference[word].reshape(1, 1, 1)}
        totals = losses.grpo_totals(mask)
        return losses.grpo_loss(logprob, jnp.zeros((1, 1)), mask, totals, options, **given)[0]

    words, p = jnp.arange(WORDS), jax.nn.softmax(logits)
    expected = (p[:, None] * jax.vmap(jax.grad(penalty), (None, 0))(logits, words)).sum(0)
    np.testing.assert_allclose(expected, jax.grad(pulls)(logits, reference), atol=1e-6)
    if kl != "k2":
        value = (p * jax.vmap(penalty, (None, 0))(logits, words)).sum()
        np.testing.assert_allclose(value, kl_forward(logits, reference), rtol=1e-5)
