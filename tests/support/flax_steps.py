"""A train step as Flax code writes it."""

import jax
import optax


def flax_train_step(state, batch):
    """A step as Flax code writes it, for a model without other state."""
    x, y = batch

    def loss_fn(params):
        logits = state.apply_fn({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss
