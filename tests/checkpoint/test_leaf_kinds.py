"""What `save` takes, `restore` gives back: every dtype, kind of leaf and name, in both layouts."""

import datetime
import decimal
import enum

import jax
import jax.extend.random
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import struct

import keras_flax_bridge as kfb
from keras_flax_bridge.checkpoint import leaf_kinds

LAYOUTS = pytest.mark.parametrize("layout", ["tree", "packed"])
DTYPES = sorted(leaf_kinds.DTYPES)
PLAIN = [np.bool_, *np.sctypeDict.values()]


def test_every_dtype_of_ml_dtypes_and_numpy_is_decided():
    extra = {np.dtype(t).name for t in vars(ml_dtypes).values() if isinstance(t, type) and is_dtype(t)}
    numbers = {np.dtype(t).name for t in PLAIN if np.dtype(t).kind in "biufc" and np.dtype(t).itemsize <= 8}
    assert extra | numbers | {"complex128"} == leaf_kinds.DTYPES


def is_dtype(kind):
    try:
        return np.dtype(kind).type is kind
    except TypeError:
        return False


def elements(dtype, *shape):
    """Zeros and ones, which every dtype has but that of the powers of two."""
    ones = np.arange(np.prod(shape, dtype=int)) % 2
    return (ones + (dtype == "float8_e8m0fnu")).astype("float32").astype(dtype).reshape(shape)


ARRAYS = {
    "numpy": lambda dtype: elements(dtype, 2, 3),
    "jax": lambda dtype: jax.device_put(elements(dtype, 2, 3)),
    "a numpy scalar": lambda dtype: elements(dtype, 3)[1],
    "0-d": lambda dtype: elements(dtype, 1).reshape(()),
    "empty": lambda dtype: elements(dtype, 0, 3),
    "in columns": lambda dtype: np.asfortranarray(elements(dtype, 3, 5)),
    "every other": lambda dtype: elements(dtype, 6, 4)[::2, ::-1],
    "large": lambda dtype: elements(dtype, 70_000),
    "a matrix": lambda dtype: elements(dtype, 2, 2).view(np.matrix),
}


def same(back, given):
    """Whether two leaves have one dtype, shape and value; a scalar of numpy's is one again."""
    bits = [np.ascontiguousarray(leaf).view(np.uint8) for leaf in (back, given)]
    kinds = isinstance(back, np.generic) == isinstance(given, np.generic)
    return kinds and back.dtype == given.dtype and back.shape == given.shape and np.array_equal(*bits)


@LAYOUTS
@pytest.mark.parametrize("kind", ARRAYS)
def test_every_dtype_comes_back(tmp_path, kind, layout):
    fit = [name for name in DTYPES if kind != "jax" or leaf_kinds.fits_device(np.dtype(name))]
    tree = {name: ARRAYS[kind](np.dtype(name)) for name in fit}
    kfb.save(tmp_path / "x", tree, layout=layout)
    assert kfb.verify(tmp_path / "x").ok
    back = kfb.restore(tmp_path / "x", tree)
    assert [name for name in fit if not same(back[name], tree[name])] == []


@LAYOUTS
def test_other_byte_orders_come_back_native(tmp_path, layout):
    dtypes = [
        f"{kind}{size}" for kind, sizes in {"i": "248", "u": "248", "f": "248"}.items() for size in sizes
    ]
    tree = {name: np.arange(5).astype(f">{name}") for name in [*dtypes, "c8", "c16"]}
    tree["scalar"] = tree["i8"][3]
    kfb.save(tmp_path / "x", tree, layout=layout)
    back = kfb.restore(tmp_path / "x", tree)
    for name, given in tree.items():
        assert np.asarray(back[name]).dtype == given.dtype.newbyteorder("="), name
        assert np.array_equal(back[name], given), name


NUMBERS = [0, -3, 2**40, -(2**63), 2**64 - 1, 0.1, 1e300, float("inf"), True, False, 1 - 2j]


@LAYOUTS
def test_numbers_of_python_come_back_as_such(tmp_path, layout):
    tree = {str(i): number for i, number in enumerate(NUMBERS)}
    kfb.save(tmp_path / "x", tree, layout=layout)
    back = kfb.restore(tmp_path / "x", {name: type(number)(0) for name, number in tree.items()})
    assert [back[name] for name in tree] == NUMBERS
    assert [type(back[name]) for name in tree] == [type(number) for number in NUMBERS]
    assert kfb.verify(tmp_path / "x").ok


def own_kind():
    """A kind of key that somebody registered: it counts."""
    return jax.extend.random.define_prng_impl(
        key_shape=(1,),
        seed=lambda seed: jnp.uint32(seed)[None],
        split=lambda key, shape: key + jnp.arange(np.prod(shape), dtype="uint32").reshape(*shape, 1),
        random_bits=lambda key, width, shape: jnp.full(shape, key[0], f"uint{width}"),
        fold_in=lambda key, data: key + jnp.uint32(data),
        name="counting_keys_of_a_test",
        tag="cnt",
    )


@LAYOUTS
@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg", own_kind])
def test_keys_of_every_kind_come_back(tmp_path, kind, layout):
    impl = kind() if callable(kind) else kind
    tree = {"one": jax.random.key(3, impl=impl), "two": jax.random.split(jax.random.key(4, impl=impl), 2)}
    kfb.save(tmp_path / "x", tree, layout=layout)
    abstract = jax.eval_shape(lambda: tree)
    for like in (tree, abstract):
        back = kfb.restore(tmp_path / "x", like)
        for name, key in tree.items():
            assert back[name].dtype == key.dtype
            assert np.array_equal(jax.random.key_data(back[name]), jax.random.key_data(key))


@LAYOUTS
@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize(
    ("saved", "wanted"),
    [("rbg", "unsafe_rbg"), ("unsafe_rbg", "rbg"), ("threefry2x32", "rbg")],
)
def test_key_of_another_implementation_is_an_error_that_names_both(tmp_path, saved, wanted, abstract, layout):
    tree = {"key": jax.random.key(3, impl=saved), "step": jnp.int32(1)}
    kfb.save(tmp_path / "x", tree, layout=layout)
    like = {"key": jax.random.key(0, impl=wanted), "step": jnp.int32(0)}
    like = jax.eval_shape(lambda: like) if abstract else like
    with pytest.raises(
        kfb.StructureMismatchError, match=f"key .* impl='{saved}', .* impl='{wanted}'"
    ) as caught:
        kfb.restore(tmp_path / "x", like)
    assert caught.value.mismatched == ("key",)
    data = jnp.zeros_like(jax.random.key_data(tree["key"]))
    back = kfb.restore(tmp_path / "x", {"key": data, "step": 0})  # the bits can be had
    assert np.array_equal(back["key"], jax.random.key_data(tree["key"]))


def test_key_without_a_known_implementation_comes_back(tmp_path):
    """Of a checkpoint that holds the data alone, as those of the first versions do."""
    key = jax.random.key(3, impl="rbg")
    kfb.save(tmp_path / "x", {"key": jax.random.key_data(key)})
    assert kfb.restore(tmp_path / "x", {"key": jax.random.key(0, impl="rbg")})["key"] == key


# what is saved, the dtype in `like`, and whether only a cast brings it there
OUT_OF_RANGE = {
    "int of more than 32 bits": (2**40, "int32", False),
    "negative int": (-1, "uint32", False),
    "int of 64 bits without a sign": (2**64 - 1, "int64", False),
    "int64 of numpy": (np.int64(2**40), "int32", True),
    "array of int64": (np.arange(3) << 32, "int32", True),
    "array of int32": (jnp.arange(3) - 200, "int8", True),
    "large float": (1e300, "float32", False),
}


@LAYOUTS
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(("saved", "dtype", "cast"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_numbers_that_like_can_not_hold_are_an_error(tmp_path, saved, dtype, cast, kind, layout):
    if kind is jnp.asarray and dtype == "int64":
        pytest.skip("jax has no int64 here")
    kfb.save(tmp_path / "x", {"deep": {"n": saved}, "w": jnp.ones(2)}, layout=layout)
    like = {"deep": {"n": kind(np.zeros(np.shape(saved), dtype))}, "w": jnp.zeros(2)}
    with pytest.raises(kfb.StructureMismatchError, match=rf"deep/n: got .*{dtype} can't hold") as caught:
        kfb.restore(tmp_path / "x", like, cast=cast)
    assert caught.value.mismatched == ("deep/n",)
    if dtype != "float32":
        fitting = {"deep": {"n": saved - saved + 1}, "w": jnp.ones(2)}
        kfb.save(tmp_path / "fits", fitting, layout=layout)
        back = kfb.restore(tmp_path / "fits", like, cast=cast)["deep"]["n"]
        assert back.dtype == dtype
        assert np.all(np.asarray(back) == 1)


class Whole(enum.IntEnum):
    ONE = 1


class Marked(np.ndarray):
    """An array that somebody adds something to."""


REFUSED = {
    "datetime64": np.array(["2020-01-01"], "M8[D]"),
    "timedelta64": np.array([1], "m8[s]"),
    "text": "text",
    "bytes": b"bytes",
    "array of text": np.array(["a", "b"]),
    "array of bytes": np.array([b"a"]),
    "text of numpy": np.str_("a"),
    "array of objects": np.array([None, {}], dtype=object),
    "longdouble": np.ones(2, np.longdouble),
    "clongdouble": np.ones(2, np.clongdouble),
    "structured": np.zeros(2, [("a", "i4")]),
    "void": np.zeros(2, "V3"),
    "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
    "subclass": np.ones(2).view(Marked),
    "long integer": 2**64,
    "long negative": -(2**63) - 1,
    "enumeration": Whole.ONE,
    "decimal": decimal.Decimal(1),
    "date": datetime.date(2020, 1, 1),
    "set": {1},
    "object": object(),
    "type": np.float32,
}


@struct.dataclass
class Stepped:
    step: int
    params: dict


@LAYOUTS
@pytest.mark.parametrize("leaf", REFUSED.values(), ids=REFUSED)
def test_what_can_not_come_back_is_refused_by_path(tmp_path, leaf, layout):
    tree = {"good": jnp.ones(3), "deep": {"bad": leaf}}
    with pytest.raises(kfb.BridgeError, match=r"deep/bad.*Nothing was written"):
        kfb.save(tmp_path / "x", tree, layout=layout)
    with kfb.CheckpointManager(tmp_path / "steps", layout=layout) as manager:
        with pytest.raises(kfb.BridgeError, match=r"params/deep/bad.*Nothing was written"):
            manager.save(Stepped(1, tree))
        assert manager.save(Stepped(1, {"good": jnp.ones(3)}))  # the step is still free
    assert sorted(p.name for p in tmp_path.iterdir()) == ["steps"]


def test_all_leaves_that_can_not_come_back_are_listed(tmp_path):
    with pytest.raises(kfb.StructureMismatchError) as caught:
        kfb.save(tmp_path / "x", {**REFUSED, "good": 1})
    assert caught.value.mismatched == tuple(sorted(REFUSED))
    assert "text of numpy  the dtype <U1" in str(caught.value)
    assert "2020" not in str(caught.value)  # never what is in an array


NAMES = [
    "%packed",
    "%25packed",
    "",
    ".",
    "..",
    "a/b",
    "~0",
    "~1",
    "it's",
    "a\nb",
    "\0",
    "ключ",
    "c",
    "0",
    "n" * 300,
]
NAMES += ["_METADATA", "zarr.json", "a.b", "a%2Eb", "/", "\\", "x" * 5000]


@LAYOUTS
def test_any_name_can_be_stored(tmp_path, layout):
    big = np.arange(20_000, dtype="float32")  # an array of its own in the packed layout, too
    tree = {name: {"own": np.float32([i]), name: {name: big + i}} for i, name in enumerate(NAMES)}
    tree |= {"%packed at the top": big, "numbers": {1: np.float32([1]), 2: np.float32([2])}}
    for one in ({"%packed": big}, {"%packed": np.float32([1]), "b": big}, tree):
        path = tmp_path / str(len(one))
        kfb.save(path, one, layout=layout)
        back = kfb.restore(path, jax.tree.map(np.zeros_like, one))
        assert jax.tree.all(jax.tree.map(lambda a, b: same(np.asarray(a), b), back, one))
        assert kfb.verify(path).ok


@jax.tree_util.register_pytree_with_keys_class
class Twice:
    """A container that gives two leaves one name."""

    def tree_flatten_with_keys(self):
        key = jax.tree_util.DictKey("a")
        return ((key, np.ones(1)), (key, np.zeros(1))), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls()


CLASHES = {
    "of two types": ({1: np.ones(1), "1": np.zeros(1)}, "keys can be sorted"),
    "twice": (Twice(), "a distinct name"),
    "no text": ({"\ud800": np.ones(1)}, r"\\ud800"),
}


@LAYOUTS
@pytest.mark.parametrize(("tree", "words"), CLASHES.values(), ids=CLASHES)
def test_names_that_would_clash_are_refused(tmp_path, tree, words, layout):
    with pytest.raises(kfb.StructureMismatchError, match=words):
        kfb.save(tmp_path / "x", {"in": tree}, layout=layout)
    assert not list(tmp_path.iterdir())


def test_logs_of_every_real_dtype_rank_and_others_are_left_out(tmp_path):
    logs = {"loss": jnp.bfloat16(0.5), "f": np.float16(2), "n": 3, "c": 1j, "text": "x", "many": np.ones(2)}
    with kfb.CheckpointManager(tmp_path, keep_best="loss") as manager:
        manager.save(Stepped(1, {"w": jnp.ones(1)}), logs=logs)
        manager.wait()
        assert manager.best_step == 1
        assert manager._root.logged("n") == {1: 3.0}
        assert manager._root.logged("c") == {}
