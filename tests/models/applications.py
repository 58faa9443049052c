"""The models of `keras.applications`, without weights, at the smallest size that they take."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import pytest
from keras import applications, initializers

# a small one of every family
FAMILIES = (
    "VGG16",
    "ResNet50",
    "ResNet50V2",
    "Xception",
    "InceptionV3",
    "InceptionResNetV2",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "DenseNet121",
    "NASNetMobile",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "ConvNeXtTiny",
)
OTHERS = tuple(n for n, _ in inspect.getmembers(applications, inspect.isfunction) if n not in FAMILIES)
SIDES = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}  # pixels


def side_of(name: str) -> int:
    return SIDES.get(name, 32)


@contextmanager
def drawn_by_numpy() -> Iterator[None]:
    """Inside, numpy draws the weights: Keras compiles a program for each shape, ten times as slow."""

    def normal(self: Any, shape: Any, dtype: Any = None) -> Any:
        return (0.05 * np.random.standard_normal(shape)).astype(dtype or "float32")

    makers = {
        initializers.VarianceScaling: normal,
        initializers.RandomNormal: normal,
        initializers.TruncatedNormal: normal,
        initializers.Zeros: lambda self, shape, dtype=None: np.zeros(shape, dtype or "float32"),
        initializers.Ones: lambda self, shape, dtype=None: np.ones(shape, dtype or "float32"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for initializer, make in makers.items():
            patch.setattr(initializer, "__call__", make)
        yield


def body(name: str) -> keras.Model:
    """The model up to its pooled features."""
    side = side_of(name)
    keras.utils.set_random_seed(70)
    with drawn_by_numpy():
        make = getattr(applications, name)
        return make(weights=None, include_top=False, pooling="avg", input_shape=(side, side, 3))


def build(name: str) -> keras.Model:
    """A classifier, compiled."""
    features = body(name)
    model = keras.Model(features.inputs, keras.layers.Dense(4)(features.outputs[0]), name=name)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, metrics=["accuracy"])
    return model
