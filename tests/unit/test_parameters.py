"""StorageClass parameters are taken as promised or refused by key; nothing that was asked for is silently dropped."""

import pytest

from csi.core.errors import InvalidInput
from csi.core.sealed import Profile
from csi.node import parameters
from csi.node.lvm.layout import Linear, Striped
from csi.node.volume import Parameters, Wipe

FROM_THE_PROVISIONER = {
    "csi.storage.k8s.io/fstype": "xfs",
    "csi.storage.k8s.io/pvc/name": "data",
    "csi.storage.k8s.io/pv/name": "pvc-1",
    "storage.kubernetes.io/csiProvisionerIdentity": "1795550000000-8081-sealed-local.csi",
}


def refused(given: dict[str, str]) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parameters.parse(given)
    return caught.value


def test_a_class_without_parameters_has_the_defaults() -> None:
    assert parameters.parse({}) == Parameters(
        vg_name=None,
        pool=None,
        layout=Linear(),
        direct=False,
        profile=Profile.NONE,
        fstype=None,
        mkfs_options=(),
        wipe=Wipe.AUTO,
        digest=parameters.digest({}),
    )


def test_every_parameter_is_taken() -> None:
    given = {
        "volumeType": "LVM",
        "pool": "fast",
        "lvmType": "striping",
        "stripes": "3",
        "stripeSize": "64Ki",
        "direct": "true",
        "mkfsOptions": "-m 0 -E 'lazy_itable_init=0'",
        "wipe": "discard",
        "fsType": "ext4",
    }
    assert parameters.parse(given) == Parameters(
        vg_name=None,
        pool="fast",
        layout=Striped(count=3, size_kib=64),
        direct=True,
        fstype="ext4",
        mkfs_options=("-m", "0", "-E", "lazy_itable_init=0"),
        wipe=Wipe.DISCARD,
        digest=parameters.digest(given),
    )
    assert parameters.parse({"vgName": "open-local-pool-0"}).vg_name == "open-local-pool-0"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("vgname", "vgName"),
        ("VGName", "vgName"),
        ("volumetype", "volumeType"),
        ("lvm-type", "lvmType"),
        ("stripe", "stripes"),
        ("stripesize", "stripeSize"),
        ("mkfsOption", "mkfsOptions"),
        ("seal", "sealed"),
        ("Direct", "direct"),
        ("fstype", "fsType"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_one(key: str, meant: str) -> None:
    error = refused({key: "x"})
    assert error.field == f"parameters[{key}]"
    assert f"did you mean '{meant}'?" in error.problem


def test_a_key_near_none_is_refused_with_all_of_them() -> None:
    error = refused({"qqqq": "x"})
    assert error.field == "parameters[qqqq]"
    assert all(key in error.problem for key in ("vgName", "pool", "lvmType", "stripes", "direct", "wipe", "sealed"))


@pytest.mark.parametrize("key", ["mediaType", "iops", "bps", "mirrors"])
def test_a_key_of_another_version_is_refused_and_not_ignored(key: str) -> None:
    error = refused({key: "100"})
    assert error.field == f"parameters[{key}]"
    assert "not offered by this version" in error.problem


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"volumeType": "MountPoint"}, "volumeType"),
        ({"volumeType": "Device"}, "volumeType"),
        ({"volumeType": "lvm"}, "volumeType"),
        ({"vgName": "a/b"}, "vgName"),
        ({"vgName": ""}, "vgName"),
        ({"vgName": "vg0", "pool": "fast"}, "pool"),
        ({"lvmType": "striped"}, "lvmType"),
        ({"lvmType": ""}, "lvmType"),
        ({"wipe": "never"}, "wipe"),
        ({"sealed": "true"}, "sealed"),
        ({"sealed": "xts-hmac"}, "sealed"),
        ({"direct": "yes"}, "direct"),
        ({"direct": ""}, "direct"),
        ({"sealed": "xts", "direct": "false"}, "direct"),
        ({"stripes": "2"}, "stripes"),
        ({"stripes": "2", "lvmType": "linear"}, "stripes"),
        ({"stripeSize": "64Ki"}, "stripeSize"),
        ({"fsType": "btrfs"}, "fsType"),
        ({"csi.storage.k8s.io/fstype": "ext3"}, "csi.storage.k8s.io/fstype"),
    ],
)
def test_a_wrong_value_is_refused_by_key(given: dict[str, str], key: str) -> None:
    assert refused(given).field == f"parameters[{key}]"


def test_a_refused_choice_names_what_there_is() -> None:
    assert refused({"lvmType": "raid"}).problem.endswith("choose linear, striping")
    assert refused({"wipe": "never"}).problem.endswith("choose auto, zero, discard, none")
    assert "use 'xts'" in refused({"sealed": "xts-hmac"}).problem


@pytest.mark.parametrize("text", ["2", "128"])
def test_stripes_may_be_2_to_128(text: str) -> None:
    assert parameters.parse({"lvmType": "striping", "stripes": text}).layout == Striped(count=int(text))


@pytest.mark.parametrize("text", ["", "0", "1", "129", "-2", "+2", "2.0", "two", "\u0662", "\u00b2", " 2"])
def test_other_numbers_of_stripes_are_refused(text: str) -> None:
    assert refused({"lvmType": "striping", "stripes": text}).field == "parameters[stripes]"


@pytest.mark.parametrize(
    ("text", "kib"),
    [("4Ki", 4), ("4", 4), ("64k", 64), ("128KiB", 128), ("1Mi", 1024), ("2m", 2048), ("1024MiB", 1024 * 1024)],
)
def test_a_stripe_size_is_counted_in_kib(text: str, kib: int) -> None:
    assert parameters.parse({"lvmType": "striping", "stripeSize": text}).layout == Striped(size_kib=kib)


@pytest.mark.parametrize("text", ["", "0", "2Ki", "3Ki", "96Ki", "2048Mi", "-64", "64Gi", "64 Ki", "big"])
def test_other_stripe_sizes_are_refused(text: str) -> None:
    assert refused({"lvmType": "striping", "stripeSize": text}).field == "parameters[stripeSize]"


@pytest.mark.parametrize(
    ("text", "direct"),
    [
        ("true", True),
        ("True", True),
        ("1", True),
        ("t", True),
        ("false", False),
        ("FALSE", False),
        ("0", False),
        ("f", False),
    ],
)
def test_direct_is_spelled_as_in_open_local(text: str, direct: bool) -> None:
    assert parameters.parse({"direct": text}).direct is direct


def test_sealed_implies_direct_because_only_the_guest_has_the_key() -> None:
    assert parameters.parse({"sealed": "xts"}).direct
    assert not parameters.parse({"sealed": "none"}).direct


@pytest.mark.parametrize(
    ("given", "fstype"),
    [
        ({}, None),
        ({"fsType": "xfs"}, "xfs"),
        ({"csi.storage.k8s.io/fstype": "xfs"}, "xfs"),
    ],
)
def test_the_filesystem_may_come_from_the_class_or_from_the_provisioner(
    given: dict[str, str], fstype: str | None
) -> None:
    assert parameters.parse(given).fstype == fstype


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        ("-m 0", ("-m", "0")),
        ("  -m   0 ", ("-m", "0")),
        ("-O 64bit,^has_journal", ("-O", "64bit,^has_journal")),
        ("-E lazy_itable_init=0,nodiscard", ("-E", "lazy_itable_init=0,nodiscard")),
        ("-L 'data-1'", ("-L", "data-1")),
    ],
)
def test_mkfs_options_are_split_as_a_shell_would(text: str, words: tuple[str, ...]) -> None:
    assert parameters.parse({"mkfsOptions": text}).mkfs_options == words


@pytest.mark.parametrize(
    "text",
    [
        "/dev/sda",
        "-d file=/etc/passwd",
        "-d file",
        "-l logdev=sda",
        "-r rtdev=sda",
        "$(reboot)",
        "-m 0;reboot",
        "-L 'two words'",
        "--",
        "-",
        "''",
        "-L 'open",
        "-L ä",
        "-L 'a\nb'",
        "-J device=UUID=1",
        "-d etc",
        "4096",
        "-m 0 vda",
        "-nq",
    ],
)
def test_mkfs_options_that_could_name_a_file_or_a_device_are_refused(text: str) -> None:
    assert refused({"mkfsOptions": text}).field == "parameters[mkfsOptions]"


def test_mkfs_options_of_a_sealed_volume_are_refused_as_nobody_would_use_them() -> None:
    assert "the guest makes the filesystem" in refused({"sealed": "xts", "mkfsOptions": "-m 0"}).problem


LONG = (
    "lazy_itable_init=0", "lazy_journal_init=0", "mmp_update_interval=5", "no_copy_xattrs", "nodiscard", "num_backup_sb=2",
    "orphan_file_size=0", "packed_meta_blocks=1", "quotatype=usrquota", "resize=1000000000000", "root_owner=1000:1000",
    "stride=16", "stripe_width=128", "hash_seed=random", "root_perms=755", "revision=1",
)  # fmt: skip


@pytest.mark.parametrize("text", [f"-L {'b' * 255}", f"-E {','.join(LONG)}"])
def test_longer_mkfs_options_than_a_tag_holds_are_refused(text: str) -> None:
    assert "at most 32 words and 256 characters" in refused({"mkfsOptions": text}).problem


def test_mkfs_options_up_to_the_limit_are_taken() -> None:
    assert len(parameters.parse({"mkfsOptions": f"-L {'b' * 254}"}).mkfs_options) == 2


def test_the_digest_does_not_depend_on_order_nor_on_what_the_provisioner_adds() -> None:
    own = {"pool": "fast", "wipe": "zero"}
    again = {"wipe": "zero", **FROM_THE_PROVISIONER, "pool": "fast"}
    assert parameters.digest(own) == parameters.digest(again)
    assert parameters.own_keys(again) == own


def test_the_digest_differs_where_a_key_or_a_value_differs() -> None:
    classes = [
        {},
        {"pool": "a"},
        {"pool": "b"},
        {"wipe": "a"},
        {"pool": "a", "wipe": "none"},
        {"pool": 'a", "wipe": "none'},
    ]
    assert len({parameters.digest(one) for one in classes}) == len(classes)


@pytest.mark.parametrize(
    ("spelled", "plain"),
    [
        ({"volumeType": "LVM", "lvmType": "linear", "wipe": "auto", "sealed": "none", "mkfsOptions": ""}, {}),
        ({"direct": "False"}, {}),
        ({"direct": "T"}, {"direct": "true"}),
        ({"sealed": "xts", "direct": "1"}, {"sealed": "xts"}),
        ({"lvmType": "striping", "stripes": "02"}, {"lvmType": "striping", "stripes": "2"}),
        ({"stripeSize": "1Mi"}, {"stripeSize": "1024k"}),
        ({"mkfsOptions": " -m  '0' "}, {"mkfsOptions": "-m 0"}),
        ({"fsType": "xfs"}, {"csi.storage.k8s.io/fstype": "xfs"}),
    ],
)
def test_the_digest_is_over_what_is_meant_and_not_over_its_spelling(
    spelled: dict[str, str], plain: dict[str, str]
) -> None:
    assert parameters.digest(spelled) == parameters.digest(plain)


def test_the_digest_never_changes_because_volumes_carry_it_in_a_tag() -> None:
    assert parameters.digest({}) == "44136fa355b3678a1146ad16f7e8649e"
    assert parameters.digest({"wipe": "none", "pool": "größe"}) == "2af5f4da0cbf89cd94dcc0d8cdeb2980"


def test_keys_of_the_provisioner_are_never_refused() -> None:
    assert parameters.parse(FROM_THE_PROVISIONER).fstype == "xfs"


DESTROYS = "a-guest-without-serve-destroys-the-volume"


def test_a_secure_mount_is_asked_for_in_so_many_words() -> None:
    assert parameters.parse({"sealed": "xts", "secureMount": DESTROYS}).secure_mount
    assert not parameters.parse({"sealed": "xts"}).secure_mount
    for word in ("true", "", DESTROYS.upper()):
        told = refused({"sealed": "xts", "secureMount": word})
        assert told.field == "parameters[secureMount]"
        assert DESTROYS in told.problem
        assert "its data are lost" in told.problem


@pytest.mark.parametrize("given", [{}, {"sealed": "none"}, {"direct": "true"}])
def test_a_secure_mount_of_a_volume_that_is_not_sealed_is_refused(given: dict[str, str]) -> None:
    assert "needs sealed" in refused(given | {"secureMount": DESTROYS}).problem


def test_a_secure_mount_is_another_class() -> None:
    assert parameters.digest({"sealed": "xts", "secureMount": DESTROYS}) != parameters.digest({"sealed": "xts"})


@pytest.mark.parametrize("key", ["stripes", "stripeSize"])
def test_a_number_that_is_too_long_for_python_is_refused_as_any_mistake(key: str) -> None:
    given = {"lvmType": "striping", key: "9" * 5000}
    assert refused(given).field == f"parameters[{key}]"
    parameters.digest(given)
