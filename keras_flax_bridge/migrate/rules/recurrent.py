"""Rules for recurrent layers."""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras import layers as L

from keras_flax_bridge.migrate.ir import Call
from keras_flax_bridge.migrate.rules.conv import one_for_all, sizes
from keras_flax_bridge.migrate.rules.core import features
from keras_flax_bridge.migrate.rules.rule import Rule, To, add
from keras_flax_bridge.migrate.rules.site import Refusal, Site, activation_function, dtypes
from keras_flax_bridge.migrate.transforms import Reshape, Split, Transform


# cells
def cell_call(cell: Any, inputs: int, site: Site) -> Call:
    """The constructor call of the native counterpart of a Keras cell."""
    if cell.dropout or cell.recurrent_dropout:
        raise Refusal("dropout inside the recurrence")
    types = {name: value(site) for name, value in dtypes().items()}
    act: dict[str, Any] = {"activation_fn": activation_function(cell.activation)}
    if hasattr(cell, "recurrent_activation"):
        act = {"gate_fn": activation_function(cell.recurrent_activation), **act}
    if type(cell) is L.LSTMCell:
        name = "nnx.OptimizedLSTMCell" if cell.use_bias else "LSTMCell"
        return Call(name, {"in_features": inputs, "hidden_features": cell.units, **act, **types})
    biased = {"in_features": inputs, "hidden_features": cell.units, "use_bias": cell.use_bias}
    if type(cell) is L.GRUCell:
        return Call("GRUCell", {**biased, "reset_after": cell.reset_after, **act, **types})
    if type(cell) is L.SimpleRNNCell:
        return Call("SimpleCell", {**biased, **act, **types})
    raise Refusal(f"a cell of the class {type(cell).__name__}")


def conv_cell_call(cell: Any, site: Site) -> Call:
    """The constructor call of the native counterpart of a convolutional LSTM cell."""
    if cell.dropout or cell.recurrent_dropout:
        raise Refusal("dropout inside the recurrence")
    return Call(
        "ConvLSTMCell",
        {
            "in_features": features(site),
            "out_features": cell.filters,
            "kernel_size": sizes(cell.kernel_size),
            "strides": one_for_all(cell.strides),
            "padding": cell.padding.upper(),
            "kernel_dilation": one_for_all(cell.dilation_rate),
            "use_bias": cell.use_bias,
            "gate_fn": activation_function(cell.recurrent_activation),
            "activation_fn": activation_function(cell.activation),
            **{name: value(site) for name, value in dtypes().items()},
        },
    )


DENSE = {"kernel": "dense_i/kernel", "recurrent_kernel": "dense_h/kernel"}


def _split_biases(site: Site, shape: tuple[int, ...]) -> tuple[Transform, ...]:
    """Splits the bias of a GRU with ``reset_after=True``: its two rows are two biases in Flax."""
    if len(shape) == 1:
        return ()
    return (Split(0, (1, 1)), Reshape((1, shape[1]), (shape[1],)))


def cell_weights(cell: Any) -> dict[str, str | To]:
    """The paths of the weights of a Keras cell in its native counterpart."""
    if isinstance(cell, L.LSTMCell):
        return {**DENSE, "bias": "dense_h/bias"}
    if isinstance(cell, L.GRUCell) and cell.reset_after:
        return {**DENSE, "bias": To(("dense_i/bias", "dense_h/bias"), _split_biases, "one row each")}
    if isinstance(cell, (L.GRUCell, L.SimpleRNNCell)):
        return {**DENSE, "bias": "dense_i/bias"}
    return {"kernel": "conv_i/kernel", "recurrent_kernel": "conv_h/kernel", "bias": "conv_i/bias"}


def sublayer_weights(prefix: str, key: str, weights: dict[str, str | To]) -> dict[str, str | To]:
    """The weights of a sublayer, with keys and paths relative to the enclosing layer."""
    return {f"{key}/{name}": _prefixed(prefix, to) for name, to in weights.items()}


def _prefixed(prefix: str, to: str | To) -> str | To:
    if isinstance(to, str):
        return f"{prefix}/{to}"
    paths = to.paths if isinstance(to.paths, tuple) else (to.paths,)
    return to._replace(paths=tuple(f"{prefix}/{path}" for path in paths))


# one direction
def _refused(site: Site) -> str | None:
    layer = site.layer
    if layer.stateful:
        return "stateful=True"
    if layer.unroll and site.mask() and layer.zero_output_for_mask:
        return "zero_output_for_mask with unroll"
    return None


def _rnn(site: Site) -> Call:
    layer = site.layer
    convolutional = isinstance(layer, (L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D))
    if convolutional:
        if site.channels_first:
            raise Refusal("channels first")
        cell = conv_cell_call(layer.cell, site)
    else:
        cell = cell_call(layer.cell, features(site), site)
    return rnn_call(layer, cell)


def rnn_call(layer: Any, cell: Call) -> Call:
    """The constructor call of the module that runs a cell over time."""
    arguments = {"cell": cell, "reverse": layer.go_backwards}
    zero = bool(getattr(layer, "zero_output_for_mask", False))
    return Call("RNN", {**arguments, "zero_output_for_mask": zero}, rngs=False)


_rnn.names = "generated `RNN` with a cell"  # type: ignore[attr-defined]


def _carry(cell: Any, states: list[str]) -> str:
    """The states in the order of Flax: (h, c) in Keras is (c, h) in Flax."""
    return f"({', '.join(reversed(states))})" if len(states) > 1 else states[0]


def _rnn_call(site: Site) -> Any:
    layer = site.layer
    sequence = site.node.inputs[0]
    given = site.argument("mask")
    mask = site.mask(sequence) if given is None else site.text(given)
    arguments = [site.cast_tensor(sequence), *([f"mask={mask}"] if mask else [])]
    initial = site.argument("initial_state")
    if initial is not None:
        states = initial if isinstance(initial, (list, tuple)) else [initial]
        arguments.append(f"carry={_carry(layer.cell, [site.cast_tensor(s) for s in states])}")
    if not layer.return_state:
        code = f"«m»({', '.join(arguments)})"
        return code if layer.return_sequences else f"{code}[:, -1]"
    both = site.let(f"«m»({', '.join([*arguments, 'return_carry=True'])})", "carry_and_outputs")
    outputs = f"{both}[1]" if layer.return_sequences else f"{both}[1][:, -1]"
    single = len(layer.state_size) == 1
    states = [f"{both}[0]"] if single else [f"{both}[0][1]", f"{both}[0][0]"]
    return f"{outputs}, {', '.join(states)}"


def _weights(site: Site) -> dict[str, str | To]:
    return sublayer_weights("cell", "cell", cell_weights(site.layer.cell))


add(
    *(
        Rule(layer, _rnn, {}, _weights, _rnn_call, refuse=_refused, note=note)
        for layer, note in (
            (L.LSTM, "`nnx.OptimizedLSTMCell`; arbitrary masks"),
            (L.GRU, "generated cell; both values of `reset_after`"),
            (L.SimpleRNN, "generated cell"),
            (L.RNN, "with one of these cells"),
            (L.ConvLSTM1D, "generated cell"),
            (L.ConvLSTM2D, "generated cell"),
            (L.ConvLSTM3D, "generated cell"),
        )
    ),
)


# two directions
def _bidirectional(site: Site) -> Call:
    layer = site.layer
    if layer.return_state or layer.stateful or site.argument("initial_state") is not None:
        raise Refusal("initial or returned states")
    calls: dict[str, Any] = {}
    for name, part in _parts(layer):
        if type(part) not in (L.LSTM, L.GRU, L.SimpleRNN):
            raise Refusal(f"a {name} layer of the class {type(part).__name__}")
        calls[name] = rnn_call(part, cell_call(part.cell, features(site), site))
    return Call("Bidirectional", {**calls, "merge": layer.merge_mode}, rngs=False)


_bidirectional.names = "generated `Bidirectional`"  # type: ignore[attr-defined]


def _parts(layer: Any) -> tuple[tuple[str, Any], ...]:
    return ("forward", layer.forward_layer), ("backward", layer.backward_layer)


def _bidirectional_call(site: Site) -> str:
    mask = site.mask()
    arguments = [site.cast(), *([f"mask={mask}"] if mask else [])]
    arguments += [] if site.layer.return_sequences else ["last=True"]
    return f"«m»({', '.join(arguments)})"


def _bidirectional_weights(site: Site) -> dict[str, str | To]:
    return {
        key: to
        for name, part in _parts(site.layer)
        for key, to in sublayer_weights(f"{name}/cell", f"{name}_layer/cell", cell_weights(part.cell)).items()
    }


# one layer applied to each timestep
def _distributed(site: Site) -> str:
    """The expression of the inner layer, with the batch and time axes merged."""
    inner = site.layer.layer
    if isinstance(inner, L.BatchNormalization) and inner.trainable:
        raise Refusal("batch statistics that are updated at each timestep")
    if site.mask() and "mask" in inspect.signature(inner.call).parameters:
        raise Refusal("a mask that the inner layer uses")
    flat = keras.KerasTensor((None, *site.shape()[2:]), site.node.inputs[0].dtype)
    site.builder.name(flat, site.let(f"{site.x}.reshape(-1, *{site.x}.shape[2:])"))
    y = site.builder.text(inner(flat))
    return f"{y}.reshape(*{site.x}.shape[:2], *{y}.shape[1:])"


add(
    Rule(
        L.Bidirectional,
        _bidirectional,
        {},
        _bidirectional_weights,
        _bidirectional_call,
        note="all merge modes",
    ),
    Rule(L.TimeDistributed, code=_distributed, note="batch and time axes merged"),
)
