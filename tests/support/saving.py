"""States, and a disk, for tests of saves that fail or come from several threads."""

import os
import resource
import signal
from concurrent import futures
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np

import keras_flax_bridge as kfb
from tests.checkpoint.test_crashes import Numbered

SIZE = 50_000


def small(step):
    return Numbered(jnp.int32(step), {"a": jnp.full(1000, step, "float32"), "b": jnp.full((3,), step)})


def large(step):
    """A state whose files are larger than a full disk allows."""
    return Numbered(jnp.int32(step), {"a": np.random.default_rng(step).normal(size=SIZE)})


@contextmanager
def full_disk(size=200_000):
    """Files can't grow over a limit, which to a program is a full disk."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, before)


def whole(folder):
    """The steps in a folder, each of which restores as it was saved."""
    reader = kfb.CheckpointManager(folder, max_to_keep=None)
    for step in reader.all_steps():
        assert int(kfb.restore(folder, small(0), step=step, include=["step"]).step) == step
        assert kfb.verify(folder, step=step).ok
    return reader.all_steps()


def told(act):
    """The step that a call says has failed, or what it gives."""
    try:
        return act()
    except kfb.CheckpointError as error:
        if "saving step" not in error.got:
            raise
        return "failed", int(os.path.basename(error.where))


def in_threads(count, act):
    """What each call of `act` gives or raises; a call is handed its number."""
    with futures.ThreadPoolExecutor(count) as pool:
        return [f.exception() or f.result() for f in [pool.submit(act, i) for i in range(count)]]
