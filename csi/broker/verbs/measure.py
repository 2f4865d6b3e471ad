"""`broker measure`: the reference set of an image, from the files that its guests are started with."""

import sys
from argparse import Namespace
from pathlib import Path

from csi.broker import images
from csi.broker.measure import snp, tdx
from csi.broker.measure.hand_off import VirtualMachine
from csi.broker.verbs.common import read
from csi.core.errors import InvalidInput

_MIB = 1024 * 1024
_MOST_MIB = (1 << 52) // _MIB
"""No processor has more address bits."""
_WITHOUT_MACHINE = (
    "rtmr0 is left out: it follows from the virtual machine's shape (--memory and --acpi). Firmware, kernel, command line "
    "and initrd are in the others. A host may give such a guest ACPI tables with code of its own: the policy takes it "
    "only if you say so, by the last line"
)


def measure_tdx(arguments: Namespace) -> int:
    """Print an `[[image]]` of `tee = "tdx"`."""
    if (arguments.memory is None) != (arguments.acpi is None):
        raise InvalidInput("--memory", "and --acpi go together: both are in RTMR0")
    boot = tdx.Boot(
        firmware=read(arguments.firmware),
        firmware_name=str(arguments.firmware),
        kernel=read(arguments.kernel),
        kernel_name=str(arguments.kernel),
        command_line=arguments.append,
        initrd=None if arguments.initrd is None else read(arguments.initrd),
    )
    if arguments.memory is not None and not 1 <= arguments.memory <= _MOST_MIB:
        raise InvalidInput("--memory", f"{arguments.memory} MiB is no virtual machine's memory")
    machine = None if arguments.acpi is None else _machine(arguments.memory * _MIB, arguments.acpi)
    found = tdx.registers(boot, machine)
    print(images.reference_set(arguments.name, "tdx", {name: [value] for name, value in found.items()}), end="")
    if machine is None:
        print(f'# unmeasured = "{images.TABLES_UNMEASURED}"')
        print(_WITHOUT_MACHINE, file=sys.stderr)
    return 0


def measure_snp(arguments: Namespace) -> int:
    """Print an `[[image]]` of `tee = "snp"`."""
    for path in filter(None, (arguments.firmware, arguments.kernel, arguments.initrd)):
        read(path)  # A file that is missing is told here in our words.
    launch = snp.Launch(
        firmware=arguments.firmware,
        kernel=arguments.kernel,
        initrd=arguments.initrd,
        command_line=arguments.append,
        vcpu_type=arguments.vcpu_type,
        guest_features=arguments.guest_features,
    )
    found = snp.measurements(launch, arguments.vcpus)
    print(images.reference_set(arguments.name, "snp", {"measurement": found}), end="")
    return 0


def _machine(memory_bytes: int, folder: Path) -> VirtualMachine:
    """`folder` has the layout of the kernel's `qemu_fw_cfg/by_name/etc`, so that it can be copied out of any such guest."""
    return VirtualMachine(
        memory_bytes=memory_bytes,
        acpi_loader=read(folder / "table-loader/raw"),
        acpi_rsdp=read(folder / "acpi/rsdp/raw"),
        acpi_tables=read(folder / "acpi/tables/raw"),
    )
