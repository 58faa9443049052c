from flax import nnx


class Model(nnx.Module):
    """The Keras model sequential."""

    def __init__(self, *, rngs):
        self.hidden = nnx.Linear(4, 3, rngs=rngs)
        self.batch_normalization = nnx.BatchNorm(3, epsilon=0.001, use_fast_variance=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(self.batch_normalization(self.hidden(x))))
