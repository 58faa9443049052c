"""What Keras knows of the data that `fit` iterates over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras


class Loader(NamedTuple):
    """What the data of a `fit` is.

    Attributes:
        kind: such as ``arrays`` or ``PyDataset``.
        batch_size: rows of a batch; None where the data doesn't say.
        batches: batches of an epoch; None where the data doesn't say.
        doubt: why a resumed run may see other batches than an unbroken one; "" where it can't.
    """

    kind: str
    batch_size: int | None
    batches: int | None
    doubt: str


def loader(iterator: Any) -> Loader:
    """What Keras's iterator over epochs gives.

    Args:
        iterator: Keras's, as `fit` makes it.
    """
    adapter = iterator.data_adapter
    name = type(adapter).__name__.removesuffix("Adapter")
    doubt = _DOUBTS.get(name, _unknown)(adapter)
    batches = iterator.steps_per_epoch or adapter.num_batches
    return Loader(_NAMES.get(name, name), adapter.batch_size, batches, doubt)


_NAMES = {
    "ArrayData": "arrays",
    "GeneratorData": "generator",
    "TFDataset": "tf.data.Dataset",
    "TorchDataLoader": "torch DataLoader",
    "GrainDataset": "Grain",
}

_AGAIN = "its batches are read again from the beginning and passed over: {}"


def _none(adapter: Any) -> str:
    return ""


def _py_dataset(adapter: Any) -> str:
    dataset = adapter.py_dataset
    for hook in ("on_epoch_begin", "on_epoch_end"):
        if getattr(type(dataset), hook) is not getattr(keras.utils.PyDataset, hook):
            return f"what {type(dataset).__name__}.{hook} did in earlier epochs is not repeated"
    if adapter.enqueuer is not None and adapter.shuffle:
        return "with workers, Keras leaves batches of one shuffled epoch to the next; shuffle=False resumes"
    return ""


def _generator(adapter: Any) -> str:
    return _AGAIN.format("it must give the same batches in each process")


def _tf_dataset(adapter: Any) -> str:
    return _AGAIN.format("a shuffled dataset starts with another order in each process")


def _torch_loader(adapter: Any) -> str:
    return _AGAIN.format("a loader that shuffles draws from torch's generator, which is not saved")


def _unknown(adapter: Any) -> str:
    return _AGAIN.format("it must give the same batches in each process")


_DOUBTS: dict[str, Callable[[Any], str]] = {
    "ArrayData": _none,
    "GrainDataset": _none,
    "PyDataset": _py_dataset,
    "GeneratorData": _generator,
    "TFDataset": _tf_dataset,
    "TorchDataLoader": _torch_loader,
}


def serves_several_epochs(iterator: Any) -> bool:
    """Whether one iterator over the data serves several epochs, as with `steps_per_epoch`."""
    return bool(iterator.steps_per_epoch)


def pulled_before(iterator: Any, count: int) -> None:
    """Tells Keras's iterator over epochs how many batches were taken in earlier ones."""
    # `_steps_seen`: what Keras counts to know when data of a known length begins anew
    iterator._steps_seen += count
