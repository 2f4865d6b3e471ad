"""sealed-local: a CSI driver for encrypted local volumes in confidential Kata guests.

One wing a program (`node`, `guest`, `broker`), which never import one another. `core` is what two or more of them use, and
`kbs` what guest and broker say to each other. `docs/how-it-works.md` tells the story, `docs/contributing.md` how the tree
is cut.
"""

__version__ = "0.1.0"
