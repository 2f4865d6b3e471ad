"""sealed-local: a CSI driver for encrypted local volumes in confidential Kata guests.

The layers, from the bottom: `model` (what things are), `wire` (what bytes mean), `plan` (what to do), `system` (doing
it), and the programs `host`, `guest` and `broker`, which never import one another. `docs/how-it-works.md` tells the story.
"""

__version__ = "0.1.0"
