"""Runs the command line."""

import sys

from keras_flax_bridge.cli import main

sys.exit(main())
