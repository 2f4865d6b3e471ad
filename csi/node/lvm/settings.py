"""LVM's settings for every command of this driver, as the text of an `lvm.conf` that is the only one it reads.

Nothing that the host's administrator set for his own commands reaches ours: a separator, a numeric form or a volume list
there would change what a report says or what a command does. So all that the reports' reader and our commands rely on is
said here, LVM's defaults included, as distributions build LVM with defaults of their own.
"""

import functools
import json
from collections.abc import Sequence
from typing import Final

_DEVICES: Final = (
    # A devices file that appears by itself would make the filter useless and hide disks.
    "use_devicesfile=0",
    'dir="/dev"', 'scan=["/dev"]', 'filter=["a|.*|"]', 'external_device_info_source="none"',
    # Never look for PVs inside volumes: tenants write there.
    "scan_lvs=0",
    # Parts of a RAID or multipath device show the label of the whole.
    "sysfs_scan=1", "multipath_component_detection=1", "md_component_detection=1",
    # To read a suspended device is to wait for whoever resumes it, perhaps for ever.
    "ignore_suspended_devices=1",
    # A copied disk is never chosen for its original.
    "allow_changes_with_duplicate_pvs=0",
    "disable_after_error_count=0", "pv_min_size=2048", "require_restorefile_with_uuid=1",
    "default_data_alignment=1", "data_alignment=0", "data_alignment_detection=1", "data_alignment_offset_detection=1",
    # The driver discards by itself, after it decided what must be wiped.
    "issue_discards=0",
)  # fmt: skip

_ALLOCATION: Final = (
    "maximise_cling=1", "physical_extent_size=4096", "use_blkid_wiping=1", "wipe_signatures_when_zeroing_new_lvs=1",
    "raid_stripe_all_devices=0", "mirror_logs_require_separate_pvs=0", "zero_metadata=1",
    "thin_pool_metadata_require_separate_pvs=0", "thin_pool_crop_metadata=0", "thin_pool_zero=1",
    'thin_pool_discards="passdown"', 'thin_pool_chunk_size_policy="generic"',
)  # fmt: skip

_LOG: Final = (
    "report_command_log=0", "silent=0", "verbose=0", "level=0", "syslog=0", "indent=0", "command_names=0", "activation=0",
)  # fmt: skip

_GLOBAL: Final = (
    'units="b"', "suffix=0", "si_unit_consistency=1", "test=0", "activation=1", "umask=63", "metadata_read_only=0",
    "locking_type=1", 'locking_dir="/run/lock/lvm"', "wait_for_locks=1", "prioritise_write_locks=1",
    "abort_on_internal_errors=0", 'mirror_segtype_default="raid1"', 'raid10_segtype_default="raid10"',
    'sparse_segtype_default="thin"', 'system_id_source="none"', "use_lvmlockd=0", "use_lvmetad=0",
    # No daemon of the host can be started or asked from a container.
    "use_lvmpolld=0", "notify_dbus=0",
)  # fmt: skip

_ACTIVATION: Final = (
    # dmeventd can't be started from a container.
    "monitoring=0",
    "checks=0", "verify_udev_operations=0", "retry_deactivation=1", 'missing_stripe_filler="error"',
    "use_linear_target=1", 'activation_mode="degraded"', "auto_set_activation_skip=1", "error_when_full=0",
    "raid_region_size=2048", "use_mlockall=0",
    # What grows by itself would take the room that the driver has promised to another volume.
    "snapshot_autoextend_threshold=100", "thin_pool_autoextend_threshold=100", "vdo_pool_autoextend_threshold=100",
)  # fmt: skip

_METADATA: Final = (
    "record_lvs_history=0", "pvmetadatacopies=1", "vgmetadatacopies=0", "pvmetadataignore=0", "stripesize=64",
    "check_pv_device_sizes=1",
)  # fmt: skip

_REPORT: Final = (
    'output_format="json"', "compact_output=0", 'compact_output_cols=""', "aligned=1", "buffered=1", "headings=1",
    'separator=" "', 'list_item_separator=","', "prefixes=0", "quoted=1", "columns_as_rows=0",
    "binary_values_as_numeric=0", 'time_format="%s"', "mark_hidden_devices=1", "two_word_unknown_device=0",
    'vgs_sort_full="vg_name"', 'pvs_sort_full="pv_name"', 'lvs_sort_full="vg_name,lv_name"',
    'pvsegs_sort_full="pv_uuid,pvseg_start"', 'segs_sort_full="lv_uuid,seg_start"',
)  # fmt: skip


@functools.lru_cache(maxsize=64)
def text(*, udev: bool, patterns: tuple[str, ...], hints: bool = False, listed: bool = False) -> str:
    """The whole `lvm.conf`, with these patterns as its filter of devices.

    With `hints` the administrator's own commands are told that disks changed: hints go stale when disks come and go, and
    a scan costs milliseconds, so no other command uses them. `listed` says that udev's list of devices and their names is
    there to be read, which saves a walk through all of /dev.
    """
    on = int(udev)
    sections = {
        # A setting that another version of LVM doesn't know is no reason to say anything.
        "config": ("checks=0",),
        "devices": (
            *_DEVICES,
            f"obtain_device_list_from_udev={int(udev or listed)}",
            f'hints="{"all" if hints else "none"}"',
            f"global_filter=[{','.join(json.dumps(pattern, ensure_ascii=False) for pattern in patterns)}]",
        ),
        "allocation": _ALLOCATION,
        "log": _LOG,
        # The archive in /etc/lvm belongs to the host's administrator.
        "backup": ("archive=0", "backup=0"),
        "global": _GLOBAL,
        # Waiting for udev in a container without the host's IPC namespace never ends.
        "activation": (*_ACTIVATION, f"udev_sync={on}", f"udev_rules={on}"),
        "metadata": _METADATA,
        "report": _REPORT,
        # A host tag would bring in further files and lists of volumes.
        "tags": ("hosttags=0",),
    }
    return "".join(_section(name, lines) for name, lines in sections.items())


def _section(name: str, lines: Sequence[str]) -> str:
    return f"{name} {{\n" + "".join(f"\t{line}\n" for line in lines) + "}\n"
