"""The command line: ``keras-flax-bridge``, or ``python -m keras_flax_bridge``."""

from keras_flax_bridge.cli.main import main as main
