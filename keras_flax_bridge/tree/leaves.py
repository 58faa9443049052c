"""Requirements on a leaf before it is used: an array, with a live buffer and a concrete value."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_flax_bridge.errors import (
    BridgeError,
    NotBuiltError,
    OwnershipError,
    StructureMismatchError,
    UnsupportedOptimizerError,
)
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree, join_path


def strong(tree: Any) -> Any:
    """Removes jax's weak types, with which a second step would compile again."""
    return jax.tree.map(_strong, tree)


def _strong(leaf: Any) -> Any:
    return jax.lax.convert_element_type(leaf, leaf.dtype) if getattr(leaf, "weak_type", False) else leaf


@jax.jit  # called by itself, jnp.copy takes five times as long
def owned(value: Any) -> Any:
    """A copy of an array with a separate buffer."""
    return strong(jnp.copy(value))


def placed_like(value: Any, other: Any) -> Any:
    """Moves an array to the devices of another array."""
    sharding = getattr(other, "sharding", None)
    if isinstance(other, jax.core.Tracer) or sharding in (None, getattr(value, "sharding", None)):
        return value
    return placed(value, sharding)


def is_abstract(leaf: Any) -> bool:
    """Whether a leaf has a shape and a dtype, but no value."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def placed(value: Any, sharding: jax.sharding.Sharding) -> Any:
    """Puts an array of this process on devices that may belong to several; abstract arrays stay abstract.

    Parts that are not moved share their buffers with `value`.
    """
    if is_abstract(value):
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    # device_put of jax 0.10 gives arrays here whose shards can't be read
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def size_of(leaf: Any) -> int:
    """The bytes of a leaf, concrete or abstract; a Python number counts as jax stores it."""
    if not hasattr(leaf, "dtype"):
        return 4
    stored = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    size: int = math.prod(stored.shape) * jnp.dtype(stored.dtype).itemsize
    return size


class SharedOnCopy:
    """A static transformation of a state: copies of the state share it, and it can't be pickled.

    It is a tuple of two functions, and jax, or Flax before 0.12.5, may make it again of those: its attributes
    belong to the second one.
    """

    def __new__(cls, init: Any, update: Any) -> Any:
        """Made of the two functions, with the attributes that the second one has."""
        self = super().__new__(cls, init, update)  # type: ignore[call-arg]
        self.__dict__ = vars(update).setdefault("attributes", self.__dict__)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self  # it holds nothing that a step changes

    def __reduce__(self) -> Any:
        raise UnsupportedOptimizerError(
            "tx",
            got="a state with a Keras optimizer, which can't be pickled",
            expected="a checkpoint",
            fix="Save the state with kfb.save(path, state); jax.device_get(state.params) can be pickled.",
        )


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed PRNG keys."""
    return hasattr(leaf, "dtype") and _is_key_dtype(leaf.dtype)


@cache  # it takes microseconds, and a state has thousands of leaves
def _is_key_dtype(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def on_disk(leaf: Any) -> Any:
    """A leaf in its stored form: the data of a typed key (abstract if the key is); other leaves unchanged.

    A numpy scalar makes Orbax's asynchronous save hang at exit, a Python bool makes it lose all leaves, and
    it rejects complex numbers: all become arrays. Arrays are converted to the byte order of the machine.
    """
    if isinstance(leaf, (np.generic, np.ndarray)):
        array = np.asarray(leaf)
        return array.astype(_native(array.dtype), copy=False)
    if isinstance(leaf, (bool, complex)):
        return np.asarray(leaf)
    if not is_key(leaf):
        return leaf
    return (
        jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array)
        else jax.eval_shape(jax.random.key_data, leaf)
    )


def from_disk(value: Any, wanted: Any) -> Any:
    """Converts a stored leaf, of this package or of other Orbax code, to the kind that is wanted."""
    if is_key(value):  # others store typed keys as such
        value = jax.random.key_data(value)
    if not is_key(wanted):
        return _as(value, _native(getattr(wanted, "dtype", None)))
    return jax.random.wrap_key_data(value, impl=key_kind(wanted))


def _native(dtype: Any) -> Any:
    """A dtype in the byte order of the machine."""
    return dtype if getattr(dtype, "isnative", True) else dtype.newbyteorder("=")


class KeyData(jax.ShapeDtypeStruct):
    """The spec of the data of typed keys, of which the implementation is known."""

    __slots__ = ("impl",)

    def __init__(self, spec: Any, impl: str):
        super().__init__(spec.shape, spec.dtype)  # type: ignore[no-untyped-call]
        self.impl = impl


def key_kind(key: Any) -> str:
    """The implementation of a typed or abstract key: its name in jax, or a registered one."""
    kinds: list[Any] = []
    jax.eval_shape(lambda traced: kinds.append(jax.random.key_impl(traced)), key)
    kind: str = kinds[0]
    return kind


def _as(value: Any, dtype: Any) -> Any:
    """A value of a dtype; a number, as others store scalars, becomes an array."""
    if dtype is None or getattr(value, "dtype", None) == dtype:
        return value
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:  # jax would cut it to 32 bits
        return np.asarray(value, dtype)
    return jnp.asarray(value, dtype)


def require_values(flat: Flat, *, arrays: bool = True) -> None:
    """Checks that every leaf holds a value that can be written somewhere.

    Args:
        flat: the leaves.
        arrays: whether each must be an array or a number; False where that is checked elsewhere.

    Raises:
        NotBuiltError: naming the leaf that is abstract.
        OwnershipError: naming the leaf that was donated, is traced, or is a Keras variable.
        StructureMismatchError: naming the leaf that is not an array.
    """
    for path, leaf in flat.items():
        if isinstance(leaf, jax.core.Tracer):
            raise OwnershipError(
                join_path(path),
                got="a value that jax is tracing",
                expected="an array",
                fix="Return the state from the jitted function and use the result outside.",
            )
        _require_usable(path, leaf, None, arrays=arrays)


@contextlib.contextmanager
def explained(trees: Mapping[str, Any]) -> Iterator[None]:
    """Explains an error of a computation by the leaf that can't be used; see `explain`."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        explain_leaf(error, trees)
        raise


def explain_leaf(error: BaseException, trees: Mapping[str, Any]) -> None:
    """Raises an error that names the leaf that can't be used, if there is one.

    Raises:
        OwnershipError: naming the leaf that was donated, or is a Keras variable.
        NotBuiltError: naming the leaf that is abstract.
        StructureMismatchError: naming the leaf that is not an array.
    """
    if not isinstance(error, BridgeError):
        for path, leaf in flatten_tree(dict(trees)).items():
            _require_usable(path, leaf, error)


def _require_usable(path: Path, leaf: Any, cause: BaseException | None, *, arrays: bool = True) -> None:
    if is_abstract(leaf):
        raise NotBuiltError(
            join_path(path),
            got="an abstract leaf",
            expected="an array",
            fix="Restore a checkpoint into the abstract state first.",
        ) from cause
    if isinstance(leaf, keras.Variable):
        raise OwnershipError(
            join_path(path),
            got=f"a keras.Variable ({leaf.path})",
            expected="an array",
            fix="Take the whole state with TrainState.from_keras(model), or the variable's .value.",
        ) from cause
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted():
        raise OwnershipError(
            join_path(path),
            got="a buffer that was donated to a step",
            expected="an array",
            fix="Use the state that the step returned, or make the step with donate=False.",
        ) from cause
    if arrays and not hasattr(leaf, "dtype") and not isinstance(leaf, numbers.Number):
        raise StructureMismatchError(
            join_path(path),
            got=f"a {type(leaf).__name__}",
            expected="an array",
            fix="Put an array there, or take a new state with TrainState.from_keras(model).",
        ) from cause
