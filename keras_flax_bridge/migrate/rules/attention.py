"""Rules for attention layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers as L

from keras_flax_bridge.migrate.ir import Call
from keras_flax_bridge.migrate.python_text import Raw, number
from keras_flax_bridge.migrate.rules.rule import Rule, add
from keras_flax_bridge.migrate.rules.site import Refusal, Site, dtypes

HEADS = {
    f"{keras}/{name}": f"{native}/{name}"
    for keras, native in (
        ("query_dense", "query"),
        ("key_dense", "key"),
        ("value_dense", "value"),
        ("output_dense", "out"),
        ("gate_dense", "gate"),
    )
    for name in ("kernel", "bias")
}


class Heads:
    """The settings of a `MultiHeadAttention` or `GroupQueryAttention` layer."""

    def __init__(self, site: Site):
        layer, config = site.layer, site.layer.get_config()
        self.query, self.value = site.argument("query"), site.argument("value")
        key = site.argument("key")
        self.key_given = key is not None
        self.key = self.value if key is None else key
        grouped = isinstance(layer, L.GroupQueryAttention)
        self.heads = config["num_query_heads" if grouped else "num_heads"]
        self.kv_heads = config["num_key_value_heads"] if grouped else None
        self.key_dim = config["head_dim" if grouped else "key_dim"]
        self.value_dim = self.key_dim if grouped else config["value_dim"] or self.key_dim
        self.dropout = config["dropout"]
        self.use_bias = config["use_bias"]
        self.gate = bool(config.get("use_gate"))
        self.window = config.get("sliding_window")
        self.scores = bool(site.argument("return_attention_scores"))
        shape = None if grouped else config["output_shape"]
        self.out = self.query.shape[-1] if shape is None else int(np.prod(shape))
        self._check(shape, config.get("attention_axes"))

    def _check(self, shape: Any, attention_axes: Any) -> None:
        if {len(t.shape) for t in (self.query, self.key, self.value)} != {3}:
            raise Refusal("inputs with other axes than batch, time and features")
        if attention_axes is not None and tuple(attention_axes) != (1,):
            raise Refusal("attention_axes")
        if np.ndim(shape) and len(shape) > 1:
            raise Refusal("an output_shape with several axes")

    def is_plain(self) -> bool:
        """Whether nnx.MultiHeadAttention computes the same."""
        own = self.gate or self.scores or self.value_dim != self.key_dim
        return not own and self.key.shape[-1] == self.value.shape[-1]


def _masks(site: Site, heads: Heads) -> list[str]:
    """All attention masks, each with the axes batch, head, query, key."""
    found = [(_mask(site, "query", heads.query), "[:, None, :, None]")]
    found += [(_mask(site, "value", heads.value), "[:, None, None, :]")]
    if heads.key_given and heads.key is not heads.value:
        found += [(_mask(site, "key", heads.key), "[:, None, None, :]")]
    masks = [f"{mask}{axes}" for mask, axes in found if mask]
    given = site.argument("attention_mask")
    if given is not None:
        cast = "" if str(given.dtype) == "bool" else ".astype(bool)"
        masks.append(site.text(given) + cast + ("[:, None]" if len(given.shape) == 3 else ""))
    pair = f"{site.text(heads.query)}, {site.text(heads.value)}"
    if site.argument("use_causal_mask"):
        masks.append(f"causal({pair})")
    if heads.window is not None:
        masks.append(f"near({pair}, {number(heads.window)})")
    return masks


def _mask(site: Site, name: str, tensor: Any) -> str | None:
    given = site.argument(f"{name}_mask")
    return site.mask(tensor) if given is None else site.text(given)


def _module(site: Site) -> Call:
    heads = Heads(site)
    own: dict[str, Any] = {"use_bias": heads.use_bias, "dropout_rate": heads.dropout}
    own |= {name: value(site) for name, value in dtypes().items()}
    if heads.is_plain():
        empty = {"attention_fn": Raw("attention_or_zero")} if heads.dropout and _masks(site, heads) else {}
        return Call("nnx.MultiHeadAttention", _plain(heads) | own | empty)
    return Call(
        "Attention",
        {
            "in_features": heads.query.shape[-1],
            "key_features": heads.key.shape[-1],
            "value_features": heads.value.shape[-1],
            "num_heads": heads.heads,
            "key_dim": heads.key_dim,
            "value_dim": heads.value_dim,
            "out_features": heads.out,
            "num_kv_heads": heads.kv_heads,
            **own,
            **({"use_gate": True} if heads.gate else {}),
        },
    )


_module.names = "`nnx.MultiHeadAttention`"  # type: ignore[attr-defined]


def _plain(heads: Heads) -> dict[str, Any]:
    features = heads.query.shape[-1]
    other = {} if heads.value.shape[-1] == features else {"in_kv_features": heads.value.shape[-1]}
    grouped = {} if heads.kv_heads is None else {"num_kv_heads": heads.kv_heads}
    whole = heads.heads * heads.key_dim
    return {
        "num_heads": heads.heads,
        "in_features": features,
        "qkv_features": None if whole == features else whole,
        "out_features": None if heads.out == features else heads.out,
        **grouped,
        **other,
        "decode": False,
        **({"broadcast_dropout": False} if heads.dropout else {}),
    }


def _multi_head_call(site: Site) -> str:
    heads = Heads(site)
    masks = _masks(site, heads)
    plain = heads.is_plain()
    query, key, value = (site.cast_tensor(t) for t in (heads.query, heads.key, heads.value))
    operands = [query, key, value]
    if plain:  # nnx uses the query as the default key, and the key as the default value
        operands = [query] if query == key == value else operands[: 2 if key == value else 3]
    arguments = [*operands, *([f"mask={' & '.join(masks)}"] if masks else [])]
    arguments += ["return_scores=True"] if heads.scores else []
    return f"«m»({', '.join(arguments)})"


add(
    *(
        Rule(
            layer,
            _module,
            {},
            HEADS,
            _multi_head_call,
            note="generated `Attention` module if head sizes differ, and for gates and scores",
        )
        for layer in (L.MultiHeadAttention, L.GroupQueryAttention)
    ),
)


# attention without projections
def _mode(site: Site) -> str:
    return "additive" if isinstance(site.layer, L.AdditiveAttention) else site.layer.score_mode


def _score_call(site: Site) -> str:
    tensors = site.node.inputs
    masks = [site.mask(tensor) for tensor in tensors]
    operands = [site.cast_tensor(tensor) for tensor in tensors]
    kept = [f"{masks[1]}[:, None]"] if masks[1] else []
    causal = site.argument("use_causal_mask")
    kept += [f"causal({operands[0]}, {operands[1]})"] if causal else []
    options = [f"mask={' & '.join(kept)}"] if kept else []
    options += [f"query_mask={masks[0]}"] if masks[0] else []
    options += ["return_scores=True"] if site.argument("return_attention_scores") else []
    return f"«m»({', '.join([*operands, *options])})"


def _explicit_masks(site: Site) -> str | None:
    return "masks passed explicitly" if site.node.kwargs.get("mask") is not None else None


def _scale_shape(site: Site) -> Any:
    scale = site.layer.scale
    return None if scale is None else tuple(scale.shape)


add(
    *(
        Rule(
            layer,
            "ScoreAttention",
            {"mode": _mode, "scale_shape": _scale_shape, "dropout_rate": "dropout"},
            {"scale": "scale", "concat_score_weight": "weight"},
            _score_call,
            refuse=_explicit_masks,
            note="generated module",
        )
        for layer in (L.Attention, L.AdditiveAttention)
    ),
)
