"""Reports that are looked at: of a state, leaf by leaf, and the curves of a run."""

import sys

import jax
import keras
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import keras_flax_bridge as kfb
from keras_flax_bridge.checkpoint.orbax_io import reading
from tests.tables import contracts


def rows(report):
    return {row.path: row for row in report.rows}


def test_a_state_is_listed_whole(trained):
    _, state = trained
    report = kfb.report(state)
    found = rows(report)
    kinds = {path: row.kind for path, row in found.items()}
    assert kinds["step"] == "step"
    assert kinds["non_trainable/batch_normalization/moving_mean"] == "batch_stat"
    assert kinds["non_trainable/dropout/seed_generator_state"] == "seed"
    assert {kind for path, kind in kinds.items() if path.startswith("params/")} == {"param"}
    assert {kind for path, kind in kinds.items() if path.startswith("opt_state/")} == {"slot"}
    assert {kind for path, kind in kinds.items() if "metrics/" in path} == {"metric"}
    leaves = jax.tree.leaves(state)
    assert report.to_json()["total"] == {"leaves": len(leaves), "bytes": sum(leaf.nbytes for leaf in leaves)}
    assert report.totals()["params"] == (
        len(jax.tree.leaves(state.params)),
        sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)),
    )
    text = str(report)
    assert all(path in text for path in found)
    assert text.splitlines()[0] == "TrainState"


def test_an_abstract_state_and_a_part_are_listed_alike(trained):
    _, state = trained
    abstract = kfb.TrainState.abstract(contracts.SEQUENTIAL.build, batch=next(contracts.SEQUENTIAL.batches()))
    assert rows(kfb.report(abstract)) == rows(kfb.report(state))
    part = kfb.report({"params": state.params})
    assert set(rows(part)) == {path for path in rows(kfb.report(state)) if path.startswith("params/")}


def test_a_sharded_state_says_how_it_lies():
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
    weights = {"params": {"kernel": np.ones((4, 3), "float32"), "bias": np.ones(3, "float32")}}
    found = rows(kfb.report(kfb.shard(weights, mesh, [("kernel", P("data"))])))
    assert found["params/kernel"].sharding == "('data',) of data=2"
    assert found["params/bias"].sharding == "() of data=2"


def test_a_notebook_shows_a_table(trained):
    _, state = trained
    shown = kfb.report(state)._repr_html_()
    assert shown.startswith("<table>")
    assert "params/" in shown


def test_a_model_is_no_state(trained):
    model, _ = trained
    with pytest.raises(kfb.StructureMismatchError, match="from_keras"):
        kfb.report(model)


# --- curves


@pytest.fixture
def run(model):
    batches = list(contracts.SEQUENTIAL.batches(2))
    state = kfb.TrainState.from_keras(model)
    _, history = kfb.train(
        state,
        kfb.make_train_step(model),
        batches,
        epochs=3,
        eval_step=kfb.make_eval_step(model),
        eval_data=batches,
        verbose=0,
    )
    return history


@pytest.mark.slow
def test_curves_of_a_run(run, tmp_path):
    figure = run.plot()
    names = [name for name in run.history if not name.startswith("val_")]
    assert [axes.get_title() for axes in figure.axes] == names
    for axes, name in zip(figure.axes, names, strict=True):
        drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
        assert np.allclose(drawn["training"], list(zip([1, 2, 3], run.history[name], strict=True)))
        assert np.allclose(drawn["held out"], list(zip([1, 2, 3], run.history[f"val_{name}"], strict=True)))
    figure.savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert isinstance(run, keras.callbacks.History)


def test_no_curves(run, monkeypatch):
    with pytest.raises(kfb.StructureMismatchError, match="no epochs"):
        kfb.History().plot()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(kfb.BridgeError, match="pip install matplotlib"):
        run.plot()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_restore_is_shown_on_a_terminal(tmp_path, monkeypatch, capsys, terminal):
    tree = {"a": np.arange(3)}
    kfb.save(tmp_path / "tree", tree)
    monkeypatch.setattr(reading, "_LONG", 1)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    kfb.restore(tmp_path / "tree", tree)
    assert ("reading 0.0 GB from" in capsys.readouterr().err) == terminal
