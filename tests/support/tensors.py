"""Tensors as other libraries have them: jax takes none of them as it is."""

import numpy as np


class Tensor:
    """A tensor with a shape and a dtype, and no way to its values."""

    def __init__(self, values):
        self._values = np.asarray(values)
        self.shape, self.dtype = self._values.shape, self._values.dtype


class WithArray(Tensor):
    """As in TensorFlow: numpy converts it."""

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype=dtype)


class TorchTensor(Tensor):
    """As in torch: numpy doesn't convert it, until it is detached."""

    def detach(self):
        return self

    def cpu(self):
        return WithArray(self._values)

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


class OnlyDlpack(Tensor):
    """Of a dtype that numpy lacks: it is read by the protocol of dlpack."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Got unsupported ScalarType BFloat16")

    def __dlpack__(self, **options):
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._values.__dlpack_device__()


class NumpyTensor(Tensor):
    """With a method that gives its values."""

    def numpy(self):
        return self._values
