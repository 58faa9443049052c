"""Damage is found, named, and never restored in silence."""

import contextlib
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.checkpoint import checksums, slices
from tests.checkpoint import test_crashes as crashes
from tests.support.cases import differing
from tests.support.thinning import LATER
from tests.tables import contracts

TREE = {
    "a": {"kernel": np.arange(12, dtype="float32").reshape(3, 4), "half": jnp.arange(5, dtype="bfloat16")},
    "big": np.random.default_rng(0).normal(size=(64, 64)),
    "key": jax.random.key(1),
    "empty": jnp.zeros((0, 2)),
    "step": 7,
}


@pytest.fixture(params=["tree", "packed"])
def path(tmp_path, request):
    kfb.save(tmp_path / "whole", TREE, layout=request.param)
    return tmp_path / "whole"


def data(tree):
    return {**tree, "key": jax.random.key_data(tree["key"])}


def files(path):
    return sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)


def flip(file, bit):
    content = bytearray(file.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    file.write_bytes(content)


def silent(path):
    """Whether a restore raised nothing, and gave other values than were saved."""
    try:
        return differing(data(kfb.restore(path, TREE)), data(TREE)) != []
    except kfb.BridgeError:
        return False


def test_a_whole_checkpoint_is_whole(path):
    report = kfb.verify(path)
    assert report.ok
    assert (report.leaves, report.unchecked) == (6, ())
    assert "6 leaves, 0 unchecked, whole" in str(report)


@pytest.mark.parametrize("tries", [3, pytest.param(40, marks=LATER)], ids=["few", "many"])
def test_no_flipped_bit_in_any_file_goes_unseen(path, tmp_path, tries):
    rng, silently = np.random.default_rng(0), []
    for file in files(path):
        for bit in rng.integers(0, 8 * file.stat().st_size, tries):
            copy = tmp_path / "copy"
            shutil.copytree(path, copy)
            flip(copy / file.relative_to(path), int(bit))
            if silent(copy):
                silently.append((file.name, bit))
            shutil.rmtree(copy)
    assert silently == []


def largest(path):
    return max(files(path), key=lambda file: file.stat().st_size)


DAMAGE = {
    "a flipped bit": lambda file: flip(file, 4 * file.stat().st_size),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(path, damage):
    damage(largest(path))
    report = kfb.verify(path)
    assert not report.ok
    with pytest.raises(kfb.CorruptCheckpointError) as error:
        kfb.restore(path, TREE)
    assert all(name in str(error.value) for name in report.damaged)


def test_checking_can_be_switched_off(path):
    state = {"a": jnp.arange(64 * 64, dtype="float32")}
    kfb.save(path.parent / "other", state)
    flip(largest(path.parent / "other"), 8 * 5000)
    with pytest.raises(kfb.CorruptCheckpointError, match="a  "):
        kfb.restore(path.parent / "other", state)
    assert set(kfb.restore(path.parent / "other", state, verify=False)) == {"a"}


@pytest.fixture
def run(tmp_path):
    """A folder of three steps, and the states in it."""
    model = contracts.SEQUENTIAL.build()
    state, train_step = kfb.TrainState.from_keras(model), kfb.make_train_step(model, donate=False)
    states = []
    with kfb.CheckpointManager(tmp_path / "run") as manager:
        for batch in contracts.SEQUENTIAL.batches(3):
            state, _ = train_step(state, batch)
            manager.save(state)
            states.append(state)
    return tmp_path / "run", states


@pytest.mark.slow
def test_a_damaged_newest_step_is_passed_over_loudly(run):
    folder, states = run
    flip(largest(folder / "3"), 4 * largest(folder / "3").stat().st_size)
    with pytest.warns(UserWarning, match=r"3 is damaged; going back to .*2"):
        assert differing(kfb.restore(folder, states[0]), states[1]) == []
    with pytest.warns(UserWarning, match="damaged"):
        kfb.load_model(folder)
    with pytest.raises(kfb.CorruptCheckpointError):
        kfb.restore(folder, states[0], step=3)


@pytest.mark.slow
def test_a_run_goes_on_from_the_step_before_a_damaged_one(run):
    folder, states = run
    flip(largest(folder / "3"), 4 * largest(folder / "3").stat().st_size)
    with kfb.CheckpointManager(folder) as manager:
        with pytest.warns(UserWarning, match="damaged"):
            state = manager.restore(states[0])
        assert int(state.step) == 2
        assert manager.save(states[2])
    assert differing(kfb.restore(folder, states[0]), states[2]) == []
    assert (folder / "3.damaged").is_dir()


@pytest.mark.slow
def test_a_step_that_is_damaged_twice_is_put_aside_twice(run):
    folder, states = run
    for _ in range(2):
        flip(largest(folder / "3"), 4 * largest(folder / "3").stat().st_size)
        with kfb.CheckpointManager(folder) as manager:
            with pytest.warns(UserWarning, match="damaged"):
                manager.restore(states[0])
            assert manager.save(states[2])
    assert {path.name for path in folder.glob("*.damaged*")} == {"3.damaged", "3.damaged1"}


@pytest.mark.parametrize("file", ["state/manifest.ocdbt", "state/_METADATA"])
def test_what_is_gone_is_named_in_every_layout(path, file):
    (path / file).unlink()
    assert not kfb.verify(path).ok
    with pytest.raises(kfb.CheckpointError):
        kfb.restore(path, TREE)


class Meddling:
    """An iterator during whose restore another process saves."""

    def __init__(self, act=lambda: None):
        self.act = act

    def get_state(self):
        return {"at": 1}

    def set_state(self, state):
        self.act()


@pytest.mark.slow
def test_a_step_that_comes_while_another_is_restored_is_left_alone(run):
    folder, states = run
    with kfb.CheckpointManager(folder / "more", max_to_keep=1) as writer:
        writer.save(states[0], data=Meddling())
        writer.wait()
        act = lambda: (writer.save(states[1], data=Meddling()), writer.wait())  # noqa: E731
        with kfb.CheckpointManager(folder / "more") as reader:
            reader.restore(states[0], data=Meddling(act))
    assert (folder / "more" / "2").is_dir()


@pytest.mark.slow
def test_where_all_steps_are_damaged_nothing_is_restored(run):
    folder, states = run
    for step in (1, 2, 3):
        flip(largest(folder / str(step)), 4 * largest(folder / str(step)).stat().st_size)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(kfb.CorruptCheckpointError):
        kfb.restore(folder, states[0])


# --- the position in the data


def grained():
    return iter(grain.MapDataset.range(20).shuffle(seed=1).batch(2).to_iter_dataset())


@pytest.fixture
def positions(tmp_path):
    """A folder of two steps with the position of a Grain iterator."""
    iterator = grained()
    with kfb.CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            next(iterator)
            manager.save(crashes.numbered(step), data=iterator)
    return tmp_path / "run"


def test_a_damaged_position_is_named_and_passed_over(positions):
    (file,) = (positions / "2" / "data").glob("*.json")
    file.write_text(file.read_text().replace('"next_index": 2', '"next_index": 3').replace("1", "5"))
    assert set(kfb.verify(positions).damaged) == {"data"}
    with pytest.raises(kfb.CorruptCheckpointError, match="data  another position"):
        kfb.restore(positions, crashes.numbered(0), step=2, data=grained())
    iterator, whole = grained(), grained()
    with pytest.warns(UserWarning, match="going back"):
        state = kfb.restore(positions, crashes.numbered(0), data=iterator)
    next(whole)
    assert int(state.step) == 1
    assert np.array_equal(next(iterator), next(whole))


@pytest.mark.parametrize("tries", [3, pytest.param(40, marks=pytest.mark.slow)], ids=["few", "many"])
def test_no_flipped_bit_in_a_position_goes_unseen(positions, tmp_path, tries):
    (file,) = (positions / "2" / "data").glob("*.json")
    wanted, whole = grained(), file.read_bytes()
    kfb.restore(positions, crashes.numbered(0), step=2, data=wanted)
    for bit in np.random.default_rng(0).integers(0, 8 * len(whole), tries):
        file.write_bytes(whole)
        flip(file, int(bit))
        iterator = grained()
        with contextlib.suppress(kfb.CheckpointError):
            kfb.restore(positions, crashes.numbered(0), step=2, data=iterator)
            assert iterator.get_state() == wanted.get_state()


# --- the checksums themselves


def flipped(data, page):
    data[len(data) // 3] ^= 1


def flipped_at_the_end(data, page):
    data[-1] ^= 128


def zeroed(data, page):
    data[:page] = 0


def swapped(data, page):
    data[: 2 * page] = np.roll(data[: 2 * page], page)


def repeated(data, page):
    data[-page:] = data[:page]


@pytest.mark.parametrize("harm", [flipped, flipped_at_the_end, zeroed, swapped, repeated])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4"])
@pytest.mark.parametrize("size", [1 << 12, (1 << 19) + 5], ids=["small", "large"])
def test_a_checksum_sees_what_storage_does(size, dtype, harm):
    leaf = np.random.default_rng(0).integers(0, 7, size).astype(jnp.dtype(dtype))
    written = checksums.checksum(leaf)
    harm(leaf.view(np.uint8), min(4096, leaf.nbytes // 4))
    assert checksums.checksum(leaf) != written


def test_a_checksum_is_of_the_values_not_of_their_order_in_memory():
    leaf = np.random.default_rng(0).normal(size=(300, 400))
    assert checksums.checksum(np.asfortranarray(leaf)) == checksums.checksum(leaf)
    assert checksums.checksum(leaf.T) != checksums.checksum(leaf)


# --- large leaves, which are read in parts

LARGE = {
    "a": np.random.default_rng(0).integers(0, 2**32, (3000, 2500), "uint32"),  # 30 MB
    "half": jnp.asarray(np.random.default_rng(1).normal(size=(9_000_001,)), "bfloat16"),
    "step": 7,
}


@pytest.fixture(scope="module", params=["tree", "packed"])
def large(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("large")
    kfb.save(folder / "whole", LARGE, layout=request.param)
    return folder / "whole"


def test_large_leaves_are_checked_in_parts(large, monkeypatch):
    read = []
    add = checksums.Running.add
    monkeypatch.setattr(
        checksums.Running, "add", lambda self, part: (read.append(part.nbytes), add(self, part))
    )
    report = kfb.verify(large)
    assert (report.ok, report.checked) == (True, 3)
    assert sum(read) == LARGE["a"].nbytes + LARGE["half"].nbytes
    assert max(read) <= slices.PART


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_of_a_large_leaf_is_named(large, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(large, copy)
    damage(largest(copy))
    report = kfb.verify(copy)
    assert set(report.damaged) <= {"a", "half"}
    assert len(report.damaged) == 3 - report.checked > 0
    assert "damaged" in str(report)


@pytest.mark.parametrize("cuts", [[], [1], [4095, 4096, 4097], [1, 2, 3, 9000, 9001, 500_001], [600_000]])
def test_a_checksum_in_parts_is_that_of_the_whole(cuts):
    leaf = np.random.default_rng(0).integers(0, 256, 600_003, "uint8")
    total = checksums.Running()
    for part in np.split(leaf, cuts):
        total.add(part)
    assert total.value() == checksums.checksum(leaf)
