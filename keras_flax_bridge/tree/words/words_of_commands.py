"""Commands and options of the command line."""

from __future__ import annotations

from keras_flax_bridge.tree.words.word import Word

_PROGRAM = "keras-flax-bridge"
_READERS = "inspect verify convert"
_WRITERS = "convert eject"
_OF_MODELS = "inspect diff convert"

COMMANDS = (
    Word("inspect", "It lists what a checkpoint or a file holds.", "show ls list info summary cat", _PROGRAM),
    Word("verify", "It compares checksums.", "check validate test checksum fsck", _PROGRAM),
    Word("diff", "It compares two checkpoints or files.", "compare cmp difference", _PROGRAM),
    Word("convert", "It turns one kind of file into another.", "export transform to copy save", _PROGRAM),
    Word("eject", "It writes a Keras model as Flax source.", "migrate source codegen generate", _PROGRAM),
    Word("plan", "It says how much memory each device needs.", "memory estimate shard mesh", _PROGRAM),
    Word(
        "doctor",
        "It says what is installed and what is wrong.",
        "env environment versions status debug",
        _PROGRAM,
    ),
    Word(
        "--step",
        "It is a step of a root folder; without it the newest.",
        "--latest --epoch --at --iteration",
        _READERS,
    ),
    Word("--force", "It replaces what is there.", "--overwrite --yes -f -y --replace", _WRITERS),
    Word("--to", "It is the kind of file.", "--type --output-format --target-format", "convert"),
    Word("--values", "It compares values too.", "--numeric --contents --tolerance --atol", "diff"),
    Word("--class-name", "It names the module's class.", "--name --model-name", "eject"),
    Word("--weights", "It is the checkpoint that is written.", "--checkpoint --ckpt", "eject"),
    Word("--mesh", "Its sizes, such as 8x4.", "--devices --topology --num-devices", "plan"),
    Word("--model", "A .keras file.", "--architecture --keras-model --config", _OF_MODELS),
    Word("--import", "It imports a Python module first.", "--custom-objects --plugin --require", _OF_MODELS),
)
