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


def called(*arguments):
    """Loads a model, or restores one path into the model of another; prints what the call took."""
    import keras_flax_bridge as kfb

    path, *others = arguments
    like = [kfb.load_model(other) for other in others]
    before = now() if like else peak()
    kfb.restore(path, like[0]) if like else kfb.load_model(path)
    print(f"\n0 {peak() - before}")


def now():
    """The memory of this process, from which on its most is counted anew, in MiB."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak()


if __name__ == "__main__":
    {"run": run, "refused": refused, "called": called}[sys.argv[1]](*sys.argv[2:])
