"""What the front and its workers say to one another: one message is one packet, its first byte says what it is."""

from typing import Final

MOUNT: Final = b"m"
"""To a worker: a SecureMountRequest follows."""
WATCH: Final = b"w"
"""To a worker: look after an open volume, whose id follows. From a worker: it looks after that volume from now on."""
ANSWER: Final = b"a"
"""From a worker: the ttRPC response."""
PASS_ON: Final = b"p"
"""From a worker: the request is not for a volume of the policy, so it is for the confidential-data-hub behind."""
DONE: Final = b"d"
"""From a worker: the volume that it looked after is closed."""

MOST_BYTES: Final = 64 * 1024
"""Longest packet. A SecureMount of a stock agent has 300 bytes."""
