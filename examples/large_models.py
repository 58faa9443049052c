"""Two decoders of the sizes that people ask about, to be planned and not to be built.

``keras-flax-bridge plan examples.large_models:seven_billion --mesh 8x4 --ema``
"""

import keras_flax_bridge as kfb  # noqa: F401  (before keras: it chooses the JAX backend)

import keras
from keras import layers


def decoder(*, width, depth, heads, groups, hidden, vocabulary=32_000):
    """A decoder with grouped attention and gated feed-forward layers."""
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(vocabulary, width)(tokens)
    for _ in range(depth):
        y = layers.RMSNormalization()(x)
        attention = layers.GroupQueryAttention(width // heads, heads, groups, use_bias=False)
        x = x + attention(y, y, use_causal_mask=True)
        y = layers.RMSNormalization()(x)
        gate = layers.Dense(hidden, "silu", use_bias=False)(y)
        x = x + layers.Dense(width, use_bias=False)(layers.Dense(hidden, use_bias=False)(y) * gate)
    return keras.Model(tokens, layers.Dense(vocabulary, use_bias=False)(layers.RMSNormalization()(x)))


def seven_billion():
    """6.7 billion weights."""
    return decoder(width=4096, depth=32, heads=32, groups=32, hidden=11_008)


def seventy_billion():
    """69 billion weights."""
    return decoder(width=8192, depth=80, heads=64, groups=8, hidden=28_672)
