"""`sealed-local PROGRAM`: the one command. Each program is imported only when it is asked for."""

import sys
from importlib import import_module

from csi import __version__

_PROGRAMS = {
    "node": ("csi.node.main", "the CSI plugin of a node: provisions LVM volumes and hands them to pods"),
    "guest": ("csi.guest.main", "inside a confidential guest: attest, unlock and mount sealed volumes"),
    "cluster": ("csi.cluster.main", "one helper for a cluster: events, reports and objects of Kubernetes; optional"),
    "doctor": ("csi.doctor.main", "for people: why a claim is stuck, asked from the cluster by kubectl"),
    "broker": ("csi.broker.main", "the tenant's key broker and volume register (KBS protocol 0.4.0)"),
}

_HELP = """usage: sealed-local PROGRAM [OPTIONS]

CSI driver for encrypted local volumes in confidential Kata guests. The node carries ciphertext and never has a key.

programs:
{programs}

`sealed-local PROGRAM --help` explains each. The documentation starts at docs/index.md.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the program that the first argument names; returns its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP.format(programs="\n".join(f"  {name:8} {text}" for name, (_, text) in _PROGRAMS.items())))
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"sealed-local {__version__}")
        return 0
    if arguments[0] not in _PROGRAMS:
        print(f"sealed-local: no program {arguments[0]!r}; there are: {', '.join(_PROGRAMS)}", file=sys.stderr)
        return 2
    module = _PROGRAMS[arguments[0]][0]
    try:
        program = import_module(module)
    except ModuleNotFoundError as missing:
        # Each image holds its own program only, and each extra its own packages.
        print(f"sealed-local: {arguments[0]} is not installed here (no module {missing.name})", file=sys.stderr)
        return 2
    return int(program.main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
