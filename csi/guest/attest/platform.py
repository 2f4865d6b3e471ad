"""What this machine is: which TEE, how it makes evidence, and whether the policy is the one that the TEE measured.

A guest in a TEE never attests as anything less, and never obeys a policy that the TEE does not vouch for: with another
policy, the host could name its own broker and be given the plaintext of what is written from then on.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from csi.core.errors import Refused
from csi.guest.attest import snp, tdx
from csi.guest.attest.agent import SOCKET, AgentAttester
from csi.guest.attest.attester import Attester, SampleAttester
from csi.guest.attest.snp import SnpAttester
from csi.guest.attest.tdx import TdxAttester
from csi.guest.attest.tsm import Tsm
from csi.guest.broker_settings import BrokerSettings
from csi.kbs import init_data
from csi.kbs.messages import Tee

_log = logging.getLogger(__name__)
_PROVIDERS: Final = {tdx.PROVIDER: Tee.TDX, snp.PROVIDER: Tee.SNP}
_SIGNS: Final = {"dev/tdx_guest": Tee.TDX, "dev/sev-guest": Tee.SNP, "sys/bus/platform/devices/sev-guest": Tee.SNP}
_TDX_FLAG: Final = "tdx_guest"
_REGISTERS: Final = {Tee.TDX: "MRCONFIGID", Tee.SNP: "HOSTDATA"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The machine below `root`."""

    root: Path = Path("/")

    @property
    def tsm(self) -> Tsm:
        """The kernel's reports."""
        return Tsm(folder=self.root / "sys/kernel/config/tsm/report")

    def tee(self) -> Tee | None:
        """Which TEE this is, None for none. The kernel's driver for reports decides; where a container sees none, or none
        is loaded, what the kernel itself found out about the processor does, so that no host talks a guest out of its TEE.

        Raises `Refused` for a TEE that this version can't use.
        """
        provider = self.tsm.provider()
        if provider is not None:
            if provider not in _PROVIDERS:
                raise Refused(f"this guest's TEE is {provider}, which this version can't use")
            return _PROVIDERS[provider]
        for path, tee in _SIGNS.items():
            if (self.root / path).exists():
                return tee
        return Tee.TDX if _TDX_FLAG in self._cpu_flags() else None

    def attester(self, settings: BrokerSettings) -> Attester:
        """How this guest makes evidence. Raises `Refused` where it can't, or only by what the policy does not turn on."""
        tee = self.tee()
        if tee is not None and self.tsm.provider() is not None:
            return TdxAttester(tsm=self.tsm) if tee is Tee.TDX else SnpAttester(tsm=self.tsm)
        if settings.attestation_agent and (tee is not None or settings.allow_sample):
            return self._agent(str(tee or Tee.SAMPLE), settings.timeout_seconds)
        if tee is not None:
            raise Refused(
                f"this is a guest of {tee}, and nothing here makes its evidence: mount configfs at /sys/kernel/config "
                "(Linux 6.7 or newer), or run the attestation-agent and say so in the policy (attestation_agent = true)"
            )
        return SampleAttester(allowed=settings.allow_sample)

    def require_measured(self, settings: BrokerSettings) -> None:
        """Raise `Refused` unless the init-data that the policy came in is what the TEE holds.

        Without a TEE there is nothing to compare, and no broker gives anything to such a guest but in development.
        """
        tee = self.tee()
        if tee is None:
            _log.warning("no TEE: nothing proves that this policy is the measured one")
            return
        name = _REGISTERS[tee]
        if not settings.init_data:
            raise Refused(
                f"the policy is no init-data, so {name} can't vouch for it: put it into init-data as sealed-local.toml, "
                "and start the guest with that"
            )
        text, register = init_data.parse(settings.init_data), self._register(tee, settings)
        if not text.fills(register):
            raise Refused(
                f"the policy is not the one that this guest was started with: {name} holds {register.hex()}, and the "
                f"policy's digest is {text.digest}"
            )

    def _agent(self, tee: str, timeout_seconds: float) -> Attester:
        """By the agent's own socket where there is one, else by the REST server that containers see."""
        path = self.root / SOCKET
        if path.is_socket():
            from csi.guest.attest.agent_socket import (
                SocketAttester,
            )  # Protobuf is not worth its import time to the others.

            return SocketAttester(tee=tee, timeout_seconds=timeout_seconds, path=path)
        return AgentAttester(tee=tee, timeout_seconds=timeout_seconds)

    def _register(self, tee: Tee, settings: BrokerSettings) -> bytes:
        if tee is Tee.TDX:
            measurements = self.root / "sys/devices/virtual/misc/tdx_guest/measurements"
            return tdx.configuration(measurements, self.root / "dev/tdx_guest")
        # The agent is a program of this guest: unlike a quote, its report never was in the host's hands.
        return snp.configuration(self.attester(settings))

    def _cpu_flags(self) -> frozenset[str]:
        try:
            with (self.root / "proc/cpuinfo").open(encoding="ascii", errors="replace") as file:
                return next((frozenset(line.split()) for line in file if line.startswith("flags")), frozenset())
        except OSError:
            return frozenset()
