"""All verifiers of a running broker. A new TEE is a module beside this one and a line here."""

import time
from collections.abc import Callable, Mapping

from csi.broker.collateral import CollateralFolder
from csi.broker.verifiers.base import Verifier
from csi.broker.verifiers.sample import SampleVerifier
from csi.broker.verifiers.snp import SnpVerifier
from csi.broker.verifiers.tdx import TdxVerifier
from csi.kbs.messages import Tee


def known_verifiers(collateral: CollateralFolder, clock: Callable[[], float] = time.time) -> Mapping[str, Verifier]:
    """By TEE name, each up to the roots that the collateral folder knows."""
    return {
        str(Tee.SAMPLE): SampleVerifier(),
        str(Tee.TDX): TdxVerifier(collateral=collateral, root=collateral.intel, clock=clock),
        str(Tee.SNP): SnpVerifier(roots=collateral.roots, more=collateral.amd, revoked=collateral.revoked, clock=clock),
    }
