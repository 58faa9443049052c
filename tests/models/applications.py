"""One model of every family in `keras.applications`, without weights, at the smallest size it takes."""

from collections.abc import Callable

import keras
from keras import applications as ka

# family: (constructor, side of the image)
FAMILIES: dict[str, tuple[Callable, int]] = {
    "VGG16": (ka.VGG16, 32),
    "ResNet50": (ka.ResNet50, 32),
    "ResNet50V2": (ka.ResNet50V2, 32),
    "Xception": (ka.Xception, 71),
    "InceptionV3": (ka.InceptionV3, 75),
    "InceptionResNetV2": (ka.InceptionResNetV2, 75),
    "MobileNet": (ka.MobileNet, 32),
    "MobileNetV2": (ka.MobileNetV2, 32),
    "MobileNetV3Small": (ka.MobileNetV3Small, 32),
    "DenseNet121": (ka.DenseNet121, 32),
    "NASNetMobile": (ka.NASNetMobile, 32),
    "EfficientNetB0": (ka.EfficientNetB0, 32),
    "EfficientNetV2B0": (ka.EfficientNetV2B0, 32),
    "ConvNeXtTiny": (ka.ConvNeXtTiny, 32),
}


def build(family: str) -> keras.Model:
    constructor, side = FAMILIES[family]
    keras.utils.set_random_seed(70)
    body = constructor(weights=None, include_top=False, pooling="avg", input_shape=(side, side, 3))
    model = keras.Model(body.inputs, keras.layers.Dense(4)(body.outputs[0]), name=family)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, metrics=["accuracy"])
    return model
