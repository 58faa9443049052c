"""Processes of their own, which run a function of a module of these tests."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def spawn(act, *arguments, first="pass", variables=None, **options):
    """Starts a process that calls a function of a module, and gives it."""
    code = f"import tests.conftest, {act.__module__} as t; {first}; t.{act.__name__}(*{arguments!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(variables or {})},
        **options,
    )


def terminated(act, *arguments):
    """The exit code after a SIGTERM, which comes when the process has printed its first line."""
    with spawn(act, *arguments) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        return process.wait(60)


def together(count, act, *arguments, distributed=True):
    """Starts processes that do the same, each with two devices, and that know each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    join = "import jax; jax.distributed.initialize('127.0.0.1:{}', {}, {}, heartbeat_timeout_seconds=10)"
    options = {"variables": flags, "stderr": subprocess.STDOUT}
    firsts = [join.format(port, count, index) if distributed else "pass" for index in range(count)]
    return [spawn(act, *arguments, first=first, **options) for first in firsts]


def process(command, **variables):
    """Types a command of the bridge into a shell, and gives what it printed."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **variables}
    line = f"{sys.executable} -m keras_flax_bridge {command}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, env=environment, cwd=ROOT
    )
