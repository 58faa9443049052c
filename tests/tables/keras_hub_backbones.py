"""Every public backbone of KerasHub, and a few tasks: `make test-full` takes each through the contract."""

from typing import Any

from tests.tables import keras_hub_images, keras_hub_several, keras_hub_text
from tests.tables.keras_hub_row import HubModel

BASE_CLASS = "a base class, which has no layers"
ROWS: list[HubModel] = [
    *keras_hub_text.ROWS,
    *keras_hub_images.ROWS,
    *keras_hub_several.ROWS,
    HubModel("Backbone", {}, not_built=BASE_CLASS),
    HubModel("FeaturePyramidBackbone", {}, not_built=BASE_CLASS),
]


def _task(name: str, backbone: str, **config: Any) -> HubModel:
    """A task around the backbone of a row, without a preprocessor, which would need files."""
    row = next(row for row in ROWS if row.name == backbone)
    return HubModel(
        name,
        lambda hub: {"backbone": row.make(hub), "preprocessor": None, **config},
        task=True,
    )


TASKS = [
    _task("BertTextClassifier", "BertBackbone", num_classes=3),
    _task("GemmaCausalLM", "GemmaBackbone"),
    _task("ViTImageClassifier", "ViTBackbone", num_classes=3),
    _task("ResNetImageClassifier", "ResNetBackbone", num_classes=3),
]
