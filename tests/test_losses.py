"""The SFT loss and its targets against PyTorch's cross-entropy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from random_head import B, T, V, draw

from videorft_jax import losses


def test_sft_loss_equals_cross_entropy():
    """torch's cross-entropy with ignored labels, value and gradient."""
    hidden, head, tokens, mask = draw(1)
    mask = mask.at[:, 0].set(False)
    count = mask.sum().astype(jnp.float32)
    run = functools.partial(losses.sft_loss, tokens=tokens, loss_mask=mask, num_targets=count)
    (loss, metrics), grads = jax.value_and_grad(
        lambda h, w: run(h, w, chunk=5), (0, 1), has_aux=True
    )(hidden, head)

    torch_hidden, torch_head = (
        torch.tensor(np.asarray(x), requires_grad=True) for x in (hidden, head)
    )
    logits = (torch_hidden @ torch_head.T)[:, :-1]
    labels = torch.tensor(np.where(mask, tokens, -100))[:, 1:].long()
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, V), labels.reshape(-1))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(grads[0], torch_hidden.grad.numpy(), atol=1e-6)
    np.testing.assert_allclose(grads[1], torch_head.grad.numpy(), atol=1e-6)
    distribution = torch.distributions.Categorical(logits=logits.detach())
    wanted = distribution.entropy()[labels >= 0].mean()
    np.testing.assert_allclose(metrics["entropy"], wanted, rtol=1e-5)


def test_no_chunk_without_targets_is_scored():
    """A NaN in states nobody scores does not reach the loss, nor its gradient."""
    hidden, head, tokens, _ = draw(2)
    mask = jnp.zeros((B, T), bool).at[:, 5].set(True)
    poisoned = hidden.at[:, 10:].set(jnp.nan)
    run = functools.partial(losses.sft_loss, tokens=tokens, loss_mask=mask, num_targets=3.0)
    loss, grad = jax.value_and_grad(lambda h: run(h, head, chunk=1)[0])(poisoned)
    assert np.isfinite(loss)
    assert np.isfinite(grad[:, 4]).all()
    np.testing.assert_array_equal(np.asarray(grad)[:, 5:], 0)


def test_shift_aligns_targets_with_the_position_before():
    tokens = jnp.array([[5, 6, 7, 8]])
    mask = jnp.array([[True, False, True, True]])
    targets, shifted = losses.shift(tokens, mask)
    assert targets[0, :3].tolist() == [6, 7, 8]
    assert shifted.tolist() == [[False, True, True, False]]


def test_legacy_labels_learn_everything_but_padding_and_images():
    image = 99
    tokens = jnp.array([[1, 2, image, 3, 4, 5, 0, 0]])
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 0, 0]])
    labels = losses.legacy_labels(tokens, segments, image)
    # The first token of a segment has nothing before it that could predict it.
    assert labels.tolist() == [[False, True, False, True, False, True, False, False]]
