"""Shared set-up: warnings are errors, eight CPU devices, one compilation cache for all runs."""

import os
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

# XLA ends the process where devices wait for each other for 40 s, which eight do on two busy cores
PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
# Most of the time goes into compiling tiny programs; these options take a quarter of it. Both sides of a
# comparison are compiled alike; .ci/run compares training with fit once more in programs that are compiled
# as users compile them.
# XLA of jaxlib 0.11.1 and newer has no such option, and ends the process at one that it does not know.
EMITTERS = "--xla_cpu_use_fusion_emitters=false" if Version(version("jaxlib")) < Version("0.11.1") else ""
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    f"--xla_cpu_parallel_codegen_split_count=1 {EMITTERS}"
)
COMPILE = "" if os.environ.get("OPTIMIZED") else QUICK
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {PATIENT} {COMPILE}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import gc

import keras_flax_bridge as kfb

import jax
import pytest

from tests.tables import contracts
from tests.support.cases import Case, parameters
from tests.support.thinning import is_left_out, thin
from tests.support.weights import drawn_by_numpy

collect_ignore = ["data"]  # files that versions of the package wrote, sources among them

gc.collect()
gc.freeze()  # the million objects of the libraries are not looked at again by each collection


@pytest.fixture(params=parameters(contracts.ROWS), scope="session")
def case(request):
    """Every row of the contract table, in turn."""
    yield Case(request.param)
    jax.clear_caches()  # programs of a row are of no use to the next


@pytest.fixture
def numpy_weights():
    """For tests that build many layers, and to which it does not matter with which weights."""
    with drawn_by_numpy():
        yield


@pytest.fixture
def model():
    """A fresh small model with weights, moving statistics, a seed, slots and metrics."""
    return contracts.SEQUENTIAL.build()


@pytest.fixture
def trained(model):
    """The small model, and a state of it after three steps."""
    state, train_step = kfb.TrainState.from_keras(model), kfb.make_train_step(model)
    for batch in contracts.SEQUENTIAL.batches(3):
        state, _ = train_step(state, batch)
    return model, state


@pytest.fixture
def leaks():
    """Fails a test that lets a tracer escape."""
    with jax.checking_leaks():
        yield


def pytest_addoption(parser):
    parser.addoption("--every", type=int, default=1, help="run one in so many of the tests of a table")


def pytest_collection_modifyitems(config, items):
    """What shares programs and fixtures runs in one worker: the checks of a row, else those of a file."""
    items[:] = [item for item in items if not is_left_out(item, config.getoption("every"), "of all")]
    for item in items:
        thin(item)
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        rows = [value.name for value in values if hasattr(value, "name")]
        item.add_marker(pytest.mark.xdist_group(rows[0] if rows else str(item.path)))
        if item.path.parent.name == "docs" and item.path.name not in _FIRST_PAGES:
            item.add_marker(pytest.mark.slow)


def pytest_runtest_teardown(item, nextitem):
    """Programs of one group are of no use to the next, and those of a whole run take gigabytes."""
    grown = _resident() - _after_clearing[-1] > _MUCH
    if nextitem is None or (_group(item) != _group(nextitem) and grown):
        jax.clear_caches()
        gc.collect()
        _after_clearing.append(_resident())


_MUCH = 1 << 30  # bytes: freed memory is used again and not given back, so what counts is growth
_after_clearing = [0]
_FIRST_PAGES = ("quickstart.md", "from-fit.md")  # the examples of the other pages run in the second pass


def _group(item):
    return item.get_closest_marker("xdist_group").args[0]


def _resident():
    """The memory of this process, in bytes; 0 where the system doesn't tell."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.exists() else 0
