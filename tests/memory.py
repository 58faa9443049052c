"""How much memory a process takes above one that only imports the package; measured in that process."""

import sys

MEBI = 1 << 20


def peak():
    """The most memory that this process has had, in MiB."""
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) // 1024


def run(*arguments):
    """Imports the package, runs a command, and prints its exit code and what it took above the import."""
    import keras_flax_bridge
    from keras_flax_bridge import cli

    assert keras_flax_bridge.__version__
    before = peak()
    code = cli.main([str(word) for word in arguments])
    print(f"\n{code} {peak() - before}")


def load(path):
    import keras_flax_bridge as kfb

    before, code = peak(), 0
    try:
        kfb.load_model(path)
    except kfb.CheckpointError:
        code = 2
    print(f"\n{code} {peak() - before}")


if __name__ == "__main__":
    {"run": run, "load": load}[sys.argv[1]](*sys.argv[2:])
