"""All verifiers of a running broker. A new TEE is a module beside this one and a line here."""

import time
from collections.abc import Callable, Mapping

from csi.broker.collateral import CollateralFolder
from csi.broker.verifiers.base import Verifier
from csi.broker.verifiers.sample import SampleVerifier
from csi.broker.verifiers.snp import SnpVerifier
from csi.broker.verifiers.snp_chain import Roots
from csi.broker.verifiers.tdx import TdxVerifier
from csi.kbs.messages import Tee


def known_verifiers(
    collateral: CollateralFolder, clock: Callable[[], float] = time.time, *, snp_roots: Roots | None = None
) -> Mapping[str, Verifier]:
    """By TEE name. `snp_roots`: what stands in the place of AMD's roots, for development."""
    return {
        str(Tee.SAMPLE): SampleVerifier(),
        str(Tee.TDX): TdxVerifier(collateral=collateral, clock=clock),
        str(Tee.SNP): SnpVerifier(roots=snp_roots or Roots.of_amd(), more=collateral.amd, clock=clock),
    }
