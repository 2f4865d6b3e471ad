"""What several verbs need."""

from argparse import Namespace
from pathlib import Path

import msgspec

from csi.broker.collateral import CollateralFolder
from csi.broker.directory import BrokerDirectory
from csi.broker.verifiers.intel_chain import INTEL, IntelRoot
from csi.broker.verifiers.snp_chain import Roots
from csi.core.errors import InvalidInput, NotFound


def read(path: Path) -> bytes:
    """All bytes of a file that the user named; raises `NotFound` or `InvalidInput` with its name."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise InvalidInput(str(path), "is a directory") from error


def as_json(value: object) -> str:
    """One line of JSON."""
    return msgspec.json.encode(value).decode()


def collateral_folder(directory: BrokerDirectory, arguments: Namespace) -> CollateralFolder:
    """What an operator imported, below the vendors' roots, or below the test authorities of a development broker."""
    snp, tdx = arguments.snp_test_authority, arguments.tdx_test_authority
    return CollateralFolder(
        directory.collateral.root,
        roots=Roots.of_amd() if snp is None else Roots.of_tests(read(snp)),
        intel=INTEL if tdx is None else IntelRoot.of_tests(read(tdx)),
    )
