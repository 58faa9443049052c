"""Weight maps onto models that somebody else wrote, and where two models differ."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen, nnx
from keras import layers as L

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.arrays import Arrays
from tests.support.models.counterparts import Theirs, convnet

floats = Arrays().floats
migrate = kfb.migrate
pytestmark = pytest.mark.usefixtures("numpy_weights")


IMAGES = floats(2, 8, 8, 3)


@pytest.mark.slow
def test_match_by_numbers(tmp_path):
    model, target = convnet(), Theirs(nnx.Rngs(0))
    wmap = migrate.match(model, target, sample=IMAGES)
    assert wmap.only_flax == (("c2", "bias"),)
    assert wmap.notes == ()
    table = dict(line.split(" -> ") for line in wmap.table().splitlines() if " -> " in line)
    assert {k.strip(): v.strip() for k, v in table.items()}["batch_normalization/gamma"] == "a/scale"
    wmap.save(tmp_path / "map.json")
    again = migrate.WeightMap.load(tmp_path / "map.json")
    kfb.save(tmp_path / "weights", kfb.ToNNX(model))
    kfb.restore(tmp_path / "weights", target, rename=again)
    target.eval()
    assert migrate.compare(model, target, IMAGES, tolerance=1e-5).ok
    other = again.to_keras(target, like=keras.models.clone_model(model))
    for a, b in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_open_without_a_sample_is_said():
    assert any("sample=" in note for note in migrate.match(convnet(), Theirs(nnx.Rngs(0))).notes)


@pytest.mark.slow
def test_settings_that_differ_are_named():
    notes = migrate.match(convnet(), Theirs(nnx.Rngs(0), epsilon=1e-5), sample=IMAGES).notes
    assert any("epsilon of a is 1e-05" in note for note in notes)


def test_layers_without_a_counterpart_are_listed():
    target = nnx.Sequential(nnx.Linear(7, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(kfb.StructureMismatchError) as error:
        migrate.match(convnet(), target)
    assert "only in Keras  conv2d" in str(error.value)
    assert "only in Flax   layers/0" in str(error.value)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(True, epsilon=1e-3)(linen.relu(linen.Conv(4, (3, 3))(x)))
        x = linen.BatchNorm(True, epsilon=1e-3)(linen.Conv(4, (3, 3), use_bias=False)(x))
        x = linen.gelu(linen.Dense(16)(x.reshape(x.shape[0], -1)), approximate=False)
        x = linen.Dense(16)(x)
        return linen.Dense(2)(x)


def test_match_linen(tmp_path):
    model, module = convnet(), LinenNet()
    variables = module.init(jax.random.key(0), IMAGES)
    wmap = migrate.match(model, variables, sample=IMAGES, apply=module.apply)
    filled = wmap.to_flax()
    report = migrate.compare(model, lambda x: module.apply(filled, x), IMAGES, tolerance=1e-5)
    assert report.ok, report
    kfb.save(tmp_path / "weights", kfb.ToNNX(model))
    again = kfb.restore(tmp_path / "weights", variables, rename=wmap)
    assert migrate.compare(model, lambda x: module.apply(again, x), IMAGES, tolerance=1e-5).ok


class Fused(nnx.Module):
    """Query, key and value in one layer."""

    def __init__(self, rngs):
        self.qkv = nnx.Linear(8, 24, rngs=rngs)
        self.proj = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        heads = [part.reshape(*part.shape[:2], 2, 4) for part in jnp.split(self.qkv(x), 3, -1)]
        return self.proj(jax.nn.dot_product_attention(*heads).reshape(x.shape))


@pytest.mark.slow
def test_match_fused_attention():
    x = keras.Input((5, 8))
    model, target, sample = (
        keras.Model(x, L.MultiHeadAttention(2, 4)(x, x)),
        Fused(nnx.Rngs(0)),
        floats(2, 5, 8),
    )
    wmap = migrate.match(model, target, sample=sample)
    assert wmap.notes == ()
    wmap.put(target, flatten_tree(wmap.to_flax()))
    assert migrate.compare(model, target, sample, tolerance=1e-5).ok


def test_the_first_layer_that_differs():
    model = convnet()
    module = migrate.to_nnx(model)
    assert migrate.compare(model, module, IMAGES, layers=True).first is None
    module.conv2d_1.kernel[...] += 0.1
    assert migrate.compare(model, module, IMAGES, layers=True).first.name == "conv2d_1"
