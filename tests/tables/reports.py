"""Every report of the package: one entry adds one, with all checks of `tests/tree/test_reports.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import keras_flax_bridge as kfb
from keras_flax_bridge.cli.files.converting import Converted
from keras_flax_bridge.cli.files.differing import DifferenceRow, FileDifference
from keras_flax_bridge.migrate.compare import ComparisonReport, Difference
from keras_flax_bridge.migrate.map_schema import Pair
from keras_flax_bridge.migrate.report import ConversionReport
from keras_flax_bridge.sharding.memory_plan import LayoutRow, MemoryPlan
from keras_flax_bridge.startup.compat import Capability
from keras_flax_bridge.startup.doctor import Clash, Health
from keras_flax_bridge.tree.paths import split_path


class Row(NamedTuple):
    """A report in which every text is the one that is given."""

    name: str
    fine: Callable[[str], Any]  # a report that is ok
    wrong: Callable[[str], Any] | None  # one that is not; None where there is no such report


def comparison(relative: float, note: str = "") -> Callable[[str], Any]:
    def build(text: str) -> Any:
        outputs, layers = (
            (Difference(text, relative, relative, note and text),),
            (Difference(text, 0.0, 0.0),),
        )
        return ComparisonReport(outputs, layers, 1e-5)

    return build


def conversion(checked: float | None) -> Callable[[str], Any]:
    limit = None if checked is None else 1e-5
    return lambda text: ConversionReport(text, ((text, text),), (text,), checked, limit)


def difference(*rows: DifferenceRow) -> Callable[[str], Any]:
    return lambda text: FileDifference(
        text, text, 1, tuple(row._replace(path=text) for row in rows), {text: [text]}
    )


def file(text: str) -> Path:
    return Path(f"/{text}".replace("\0", ""))


def weight_map(*, matched: bool) -> Callable[[str], Any]:
    alone = "only_flax" if not matched else "seeds"

    def build(text: str) -> Any:
        path = split_path(text)
        return kfb.migrate.WeightMap([Pair((path,), (path,))], **{alone: [path]})

    return build


def sharding(text: str) -> Any:
    return kfb.ShardingReport(
        1, (kfb.RuleReport(text, jax.sharding.PartitionSpec(text, None), 1, text, 1, 1, 1),)
    )


VALUE = DifferenceRow("value", "", largest=0.5)
ROWS = [
    Row("keys", lambda text: kfb.KeyReport(text, [kfb.KeyRow(text, text, (2,), text, text)]), None),
    Row("state", lambda text: kfb.report({text: np.ones(2), "b": np.ones(3)}), None),
    Row(
        "verification",
        lambda text: kfb.VerifyReport(file(text), 1, {}, (), 1, text),
        lambda text: kfb.VerifyReport(file(text), 2, {text: text}, (text,)),
    ),
    Row(
        "verification_of_nothing",
        lambda text: kfb.VerifyReport(file(text), 1, {}, (), 1, text),
        lambda text: kfb.VerifyReport(file(text), 0, {}, ()),
    ),
    Row("difference", difference(), difference(DifferenceRow("missing", "", a="int32[2]"), VALUE)),
    Row("difference_without_number", difference(), difference(VALUE._replace(largest="not a finite number"))),
    Row("file_conversion", lambda text: Converted(file(text), "keras", 1, 4, {text: [text]}, [text]), None),
    Row("conversion", conversion(1e-7), conversion(1e-3)),
    Row("conversion_not_compared", conversion(0.0), conversion(None)),
    Row("comparison", comparison(1e-8), comparison(float("nan"))),
    Row("comparison_of_shapes", comparison(0.0), comparison(float("inf"), "shapes")),
    Row("weight_map", weight_map(matched=True), weight_map(matched=False)),
    Row("sharding", sharding, None),
    Row("memory_plan", lambda text: MemoryPlan({text: 2}, (LayoutRow(text, 8, 16, 8, 4),), 36, 1.0), None),
    Row(
        "resumption",
        lambda text: kfb.ResumeReport((1, 1), 1, ()),
        lambda text: kfb.ResumeReport((1, 1), 1, (text,)),
    ),
    Row(
        "environment",
        lambda text: Health({text: text}, []),
        lambda text: Health({text: text}, [Clash(text, text)], [Capability(*[text] * 5)]),
    ),
]
