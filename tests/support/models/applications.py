"""The models of `keras.applications`, without weights, at the smallest size that they take."""

import inspect

import keras
from keras import applications

from tests.support.weights import drawn_by_numpy

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
