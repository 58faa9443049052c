"""How much memory a process takes above one that only imports the package; measured in that process."""

import sys


def peak():
    """The most memory that this process has had, in MiB."""
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) // 1024


def run(*arguments):
    """Imports the package, runs a command, and prints its exit code and what it took above the import."""
    import keras_flax_bridge
    from keras_flax_bridge.cli.main import main

    assert keras_flax_bridge.__version__
    before = peak()
    code = main([str(word) for word in arguments])
    print(f"\n{code} {peak() - before}")


def refused(path):
    """Takes a file through many doors, and prints the codes and what all of them took."""
    import keras_flax_bridge as kfb
    from keras_flax_bridge.cli.main import main

    before, codes = peak(), []
    for words in (["inspect"], ["diff", "--values", path], ["verify"], ["convert", path + ".safetensors"]):
        codes.append(main([*words[:1], path, *words[1:]]))
    try:
        kfb.load_model(path)
    except kfb.CheckpointError:
        codes.append(2)
    print(f"\n{'.'.join(map(str, codes))} {peak() - before}")


if __name__ == "__main__":
    {"run": run, "refused": refused}[sys.argv[1]](*sys.argv[2:])
