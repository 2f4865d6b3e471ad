"""Reference sets and TCB floors: each rule of the policy lets the right guest in and keeps one wrong guest out, by name."""

import dataclasses
from dataclasses import replace

import pytest

from csi.broker import appraise, images
from csi.broker import policy as broker_policy
from csi.broker.claims import (
    HardwareClaims,
    SnpClaims,
    SnpPolicy,
    SnpProduct,
    SnpTcb,
    StoredClaims,
    TcbStatus,
    TdAttributes,
    TdxClaims,
)
from csi.broker.release import TdxImage
from csi.core.errors import InvalidInput, NotReleased
from csi.kbs import strict_json
from tests.fakes.claims import INIT_DATA_DIGEST, SNP, TCB, TDX

TDX_REGISTERS = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mrconfigid", "mrowner", "mrownerconfig", "mrseam",
                 "mrsignerseam", "xfam")  # fmt: skip
SNP_REGISTERS = ("measurement", "host_data", "family_id", "image_id", "id_key_digest", "author_key_digest")


def _listed(claims: HardwareClaims, names: tuple[str, ...]) -> str:
    return "\n".join(f'{name} = ["{claims.registers[name]}"]' for name in names)


POLICY = f"""
version = 1

[tee.tdx]
tcb_status = ["UpToDate", "SWHardeningNeeded"]
denied_advisories = ["INTEL-SA-00837"]
minimum_tcb_evaluation = 17

[tee.snp]
committed = true

[tee.snp.minimum_tcb.milan]
bootloader = 3
tee = 0
snp = 8
microcode = 115

[tee.snp.minimum_tcb.turin]
fmc = 1
bootloader = 3
tee = 0
snp = 8
microcode = 115

[[image]]
name = "td-1"
tee = "tdx"
{_listed(TDX, TDX_REGISTERS)}

[[image]]
name = "snp-1"
tee = "snp"
{_listed(SNP, SNP_REGISTERS)}
minimum_guest_svn = 2
smt = true

[[workload]]
name = "spark"
tee = ["tdx", "snp"]
images = ["td-1", "snp-1"]
init_data = ["{INIT_DATA_DIGEST}"]
volumes = ["pvc-*"]
"""


def refusal(claims: HardwareClaims, text: str = POLICY) -> str:
    with pytest.raises(NotReleased) as caught:
        appraise.check_volume(broker_policy.parse(text), claims, "pvc-1")
    return str(caught.value)


@pytest.mark.parametrize("claims", [TDX, SNP], ids=["tdx", "snp"])
def test_the_guest_of_the_reference_set_is_let_in(claims: HardwareClaims) -> None:
    policy = broker_policy.parse(POLICY)
    assert appraise.check_volume(policy, claims, "pvc-1").name == "spark"
    appraise.check_known(policy, claims)


@pytest.mark.parametrize("register", TDX_REGISTERS)
def test_each_register_of_a_td_is_compared(register: str) -> None:
    other = "fe" * (len(TDX.registers[register]) // 2)
    assert f"image 'td-1': {register} does not list {other}" in refusal(replace(TDX, **{register: other}))  # type: ignore[arg-type]


@pytest.mark.parametrize("register", SNP_REGISTERS)
def test_each_register_of_a_snp_report_is_compared(register: str) -> None:
    other = "fe" * (len(SNP.registers[register]) // 2)
    field = "launch_measurement" if register == "measurement" else register
    assert f"image 'snp-1': {register} does not list {other}" in refusal(replace(SNP, **{field: other}))  # type: ignore[arg-type]


def _attributes(bits: int) -> TdAttributes:
    return TdAttributes.parse(bits.to_bytes(8, "little"))


@pytest.mark.parametrize(
    ("claims", "rule"),
    [
        (replace(TDX, tcb_status=TcbStatus.OUT_OF_DATE), "[tee.tdx] tcb_status does not list OutOfDate"),
        (replace(TDX, current_tcb_status=TcbStatus.OUT_OF_DATE), "tcb_status (current TCB) does not list OutOfDate"),
        (replace(TDX, tcb_status=TcbStatus.SW_HARDENING_NEEDED, current_tcb_status=TcbStatus.OUT_OF_DATE), "(current TCB)"),
        (replace(TDX, tcb_status=TcbStatus.OUT_OF_DATE, current_tcb_status=None), "[tee.tdx] tcb_status does not list"),
        (replace(TDX, advisories=("INTEL-SA-00001", "INTEL-SA-00837")), "[tee.tdx] denied_advisories lists INTEL-SA-00837"),
        (replace(TDX, tcb_evaluation=16), "[tee.tdx] minimum_tcb_evaluation is 17, and the collateral has number 16"),
        (replace(TDX, attributes=_attributes(1 << 28 | 1)), "debug is not allowed"),
        (replace(TDX, attributes=_attributes(1 << 28 | 1 << 5)), "debug is not allowed"),
        (replace(TDX, attributes=_attributes(1 << 28 | 1 << 29)), "attributes: the TD may be migrated"),
        (replace(TDX, attributes=_attributes(0)), "attributes: SEPT_VE_DISABLE is off"),
        (replace(TDX, init_data="sha384:" + "cd" * 48), "init_data does not list sha384:cdcd"),
        (replace(TDX, init_data=None), "init_data: the guest was started with a configuration that it does not show"),
        (replace(SNP, policy=SnpPolicy.parse(0xB0000)), "debug is not allowed"),
        (replace(SNP, policy=SnpPolicy.parse(0x70000)), "migration_agent may move the guest"),
        (replace(SNP, vmpl=1), "vmpl does not list 1"),
        (replace(SNP, guest_svn=1), "minimum_guest_svn is 2, the guest has 1"),
        (replace(SNP, product=SnpProduct.GENOA), "[tee.snp.minimum_tcb.genoa] is missing"),
        (replace(SNP, product=SnpProduct.TURIN), "[tee.snp.minimum_tcb.turin] (reported TCB) has fmc 0, not 1"),
        (replace(SNP, init_data="sha384:" + "ab" * 47 + "cd"), "init_data does not list sha384:abab"),
        (replace(SNP, init_data="sha256:" + "ab" * 32), "init_data does not list sha256:abab"),
        (replace(SNP, init_data=None), "init_data: the guest was started with a configuration that it does not show"),
    ],
)  # fmt: skip
def test_each_rule_keeps_a_guest_out_and_is_named(claims: HardwareClaims, rule: str) -> None:
    assert rule in refusal(claims)


@pytest.mark.parametrize("version", ["reported_tcb", "current_tcb", "launch_tcb", "committed_tcb"])
@pytest.mark.parametrize("part", ["bootloader", "snp", "microcode"])
def test_each_part_of_a_tcb_counts_for_itself(version: str, part: str) -> None:
    newest = SnpTcb(fmc=255, bootloader=255, tee=255, snp=255, microcode=255)
    floor = getattr(TCB, part)
    found = refusal(replace(SNP, **{version: replace(newest, **{part: floor - 1})}))  # type: ignore[arg-type]
    assert f"({version.removesuffix('_tcb')} TCB) has {part} {floor - 1}, not {floor}" in found


def test_a_floor_of_zero_for_a_part_that_a_product_has_or_lacks_can_be_written() -> None:
    text = POLICY.replace("fmc = 1\n", "fmc = 0\n").replace("milan]\n", "milan]\nfmc = 0\n")
    assert {floor.fmc for floor in broker_policy.parse(text).snp.minimum_tcb.values()} == {0}


@pytest.mark.parametrize("narrower", ["smt = false", "single_socket = true"])
def test_the_host_s_liberties_can_be_narrowed(narrower: str) -> None:
    assert narrower in refusal(SNP, POLICY.replace("smt = true", narrower))


def test_the_committed_tcb_counts_only_where_the_policy_says_so() -> None:
    policy = broker_policy.parse(POLICY.replace("committed = true", ""))
    appraise.check_volume(policy, replace(SNP, committed_tcb=replace(TCB, snp=1)), "pvc-1")


def test_a_guest_without_init_data_needs_a_policy_that_says_none() -> None:
    bare = replace(SNP, init_data=None, host_data="00" * 32)
    text = POLICY.replace(f'host_data = ["{SNP.host_data}"]', "")
    assert "init_data does not list none" in refusal(bare, text)
    text = text.replace(f'init_data = ["{INIT_DATA_DIGEST}"]', 'init_data = ["none"]')
    appraise.check_volume(broker_policy.parse(text), bare, "pvc-1")
    assert "does not show" in refusal(replace(bare, host_data=SNP.host_data), text)


def test_any_leaves_the_registers_out_and_nothing_else() -> None:
    text = POLICY.replace('images = ["td-1", "snp-1"]', 'images = ["any"]')
    policy = broker_policy.parse(text)
    appraise.check_volume(policy, replace(TDX, mrtd="fe" * 48), "pvc-1")
    appraise.check_volume(policy, replace(SNP, launch_measurement="fe" * 48), "pvc-1")
    assert "SEPT_VE_DISABLE" in refusal(replace(TDX, attributes=_attributes(0)), text)
    assert "migration_agent" in refusal(replace(SNP, policy=SnpPolicy.parse(0x70000)), text)


def test_a_workload_takes_only_its_own_images_and_tees() -> None:
    text = POLICY.replace('images = ["td-1", "snp-1"]', 'images = ["td-1"]').replace('"tdx", "snp"]', '"tdx"]')
    assert "tee does not list snp" in refusal(SNP, text)
    text = text.replace('tee = ["tdx"]', 'tee = ["any"]')
    assert "images: none is of snp" in refusal(SNP, text)


def test_a_workload_has_a_name_of_its_own() -> None:
    workload = POLICY[POLICY.index("[[workload]]") :]
    with pytest.raises(InvalidInput, match=r"workload\[1\].name: there are two workloads 'spark'"):
        broker_policy.parse(POLICY + workload)
    broker_policy.parse(POLICY + workload.replace('"spark"', '"spark-2"'))


def test_a_volume_is_used_by_the_workloads_that_the_guest_belongs_to_and_by_no_other() -> None:
    workload = POLICY[POLICY.index("[[workload]]") :]
    other = workload.replace('"spark"', '"other"').replace(INIT_DATA_DIGEST, "none")
    elsewhere = workload.replace('"spark"', '"elsewhere"').replace("pvc-*", "data-*")
    policy = broker_policy.parse(POLICY + other + elsewhere)
    assert appraise.workloads_for_volume(policy, SNP, "pvc-1") == ("spark",)
    assert appraise.memberships(policy, SNP) == ("spark", "elsewhere")
    assert appraise.memberships(policy, replace(SNP, product=SnpProduct.GENOA)) == ()


RTMR0, RTMR1, RTMR2 = (f'{name} = ["{TDX.registers[name]}"]\n' for name in ("rtmr0", "rtmr1", "rtmr2"))
ALONE = f'version = 1\n[[image]]\nname = "td-1"\ntee = "tdx"\nmrtd = ["{TDX.mrtd}"]\n'
KERNEL, TABLES = (f'unmeasured = "{words}"\n' for words in (images.UNMEASURED, images.TABLES_UNMEASURED))


@pytest.mark.parametrize(
    ("named", "field"),
    [
        ("", r"rtmr1: missing: MRTD is the firmware alone.*whoever starts the guest chooses kernel"),
        (RTMR0 + RTMR1, r"rtmr2: missing"),
        (RTMR0 + RTMR2, r"rtmr1: missing"),
        (RTMR1, r"rtmr2: missing"),
        (RTMR1 + RTMR2, r"rtmr0: missing: .*ACPI tables.*whoever starts the guest chooses ACPI tables"),
        ('unmeasured = "yes"\n', r"unmeasured: has to be"),
        (RTMR1 + RTMR2 + 'unmeasured = "yes"\n', r"unmeasured: has to be 'whoever starts the guest chooses ACPI"),
        (TABLES, r"unmeasured: has to be 'whoever starts the guest chooses kernel"),
        (RTMR0 + TABLES, r"unmeasured: has to be 'whoever starts the guest chooses kernel"),
        (RTMR1 + RTMR2 + KERNEL, r"unmeasured: has to be 'whoever starts the guest chooses ACPI"),
        (RTMR0 + RTMR1 + RTMR2 + TABLES, "take this line out"),
        (RTMR0 + RTMR1 + RTMR2 + KERNEL, "take this line out"),
    ],
)
def test_a_policy_that_leaves_a_register_out_has_to_say_what_that_means(named: str, field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"image\[0\].{field}" if ":" in field else field):
        broker_policy.parse(ALONE + named)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (KERNEL, images.UNMEASURED),
        (RTMR0 + RTMR1 + KERNEL, images.UNMEASURED),
        (RTMR1 + RTMR2 + TABLES, images.TABLES_UNMEASURED),
        (RTMR0 + RTMR1 + RTMR2, None),
    ],
)
def test_a_policy_that_says_what_it_leaves_out_is_taken(named: str, words: str | None) -> None:
    (image,) = broker_policy.parse(ALONE + named).images
    assert isinstance(image, TdxImage)
    assert image.unmeasured == words


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        (f'mrtd = ["{TDX.mrtd}"]', "", r"image\[0\].mrtd"),
        (f'measurement = ["{SNP.launch_measurement}"]', "", r"image\[1\].measurement"),
        (f'mrtd = ["{TDX.mrtd}"]', "mrtd = []", r"image\[0\].mrtd"),
        (f'mrtd = ["{TDX.mrtd}"]', 'mrtd = ["any"]', r"image\[0\].mrtd"),
        (TDX.mrtd, TDX.mrtd[:-2], r"image\[0\].mrtd"),
        (TDX.rtmr1, TDX.rtmr1.replace("1", "A"), r"image\[0\].rtmr1"),
        (f'host_data = ["{SNP.host_data}"]', f'host_data = ["{"ab" * 48}"]', r"image\[1\].host_data"),
        ("mrtd =", "mrtdd =", "mrtdd"),
        ('tee = "tdx"', 'tee = "sgx"', "sgx"),
        ('tee = "tdx"', "", "tee"),
        ('name = "snp-1"', 'name = "td-1"', "two images 'td-1'"),
        ('name = "snp-1"', 'name = "any"', r"image\[1\].name"),
        ('name = "snp-1"', 'name = "a b"', r"image\[1\].name"),
        ('images = ["td-1", "snp-1"]', 'images = ["td-1", "td-2"]', "no .*'td-2'"),
        ('images = ["td-1", "snp-1"]', 'images = ["td-1"]', r"workload\[0\].images: none is of snp"),
        ('images = ["td-1", "snp-1"]', 'images = []', r"workload\[0\].images"),
        ('images = ["td-1", "snp-1"]', 'images = ["any"]\nlaunch_digests = ["x"]', "launch_digests: is for the sample"),
        ('tee = ["tdx", "snp"]', 'tee = ["sample", "snp"]', r"workload\[0\].launch_digests"),
        ('"SWHardeningNeeded"', '"Fine"', "tcb_status"),
        ('tcb_status = ["UpToDate", "SWHardeningNeeded"]', "tcb_status = []", "tcb_status"),
        ('"INTEL-SA-00837"', '"SA-837"', "denied_advisories"),
        ("minimum_tcb.milan", "minimum_tcb.rome", "rome"),
        ("bootloader = 3\n", "", "bootloader"),
        ("fmc = 1\n", "", r"minimum_tcb\.turin\.fmc: missing"),
        ("milan]\n", "milan]\nfmc = 1\n", r"minimum_tcb\.milan\.fmc.*only Turin"),
        ("microcode = 115", "microcode = 256", "microcode"),
        ("minimum_guest_svn = 2", "vmpl = [4]", "vmpl"),
        ("minimum_guest_svn = 2", "vmpl = []", "vmpl"),
        ("rtmr3 =", f'unmeasured = "{images.UNMEASURED}"\nrtmr3 =', "take this line out"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_by_field(old: str, new: str, field: str) -> None:
    assert old in POLICY
    with pytest.raises(InvalidInput, match=field):
        broker_policy.parse(POLICY.replace(old, new, 1))


@pytest.mark.parametrize("claims", [TDX, SNP], ids=["tdx", "snp"])
def test_a_learned_reference_set_lets_in_what_it_was_learned_from(claims: HardwareClaims) -> None:
    text = POLICY[: POLICY.index("[[image]]")] + images.learned(claims, "td-1") + POLICY[POLICY.index("[[workload]]") :]
    text = text.replace('images = ["td-1", "snp-1"]', 'images = ["td-1"]').replace('"tdx", "snp"]', f'"{claims.tee}"]')
    policy = broker_policy.parse(text)
    appraise.check_volume(policy, claims, "pvc-1")
    changed = {"mrtd": "fe" * 48} if isinstance(claims, TdxClaims) else {"launch_measurement": "fe" * 48}
    assert "does not list" in refusal(replace(claims, **changed), text)  # type: ignore[arg-type]


@pytest.mark.parametrize("claims", [TDX, SNP], ids=["tdx", "snp"])
def test_claims_come_back_from_json_as_they_were(claims: HardwareClaims) -> None:
    text = strict_json.encode(StoredClaims.of(claims))
    assert strict_json.decode(text, StoredClaims, "claims").claims == claims


def test_stored_claims_are_of_exactly_one_tee() -> None:
    for wrong in (StoredClaims(), StoredClaims(tdx=TDX, snp=SNP)):
        with pytest.raises(InvalidInput, match="not of one"):
            _ = wrong.claims


def test_measurements_differ_where_what_was_started_differs() -> None:
    tds = [TDX, *(replace(TDX, **{name: "fe" * 48}) for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "mrconfigid"))]  # type: ignore[arg-type]
    snps = [SNP, replace(SNP, launch_measurement="fe" * 48), replace(SNP, host_data="fe" * 32), replace(SNP, vmpl=1)]
    measurements = {claims.measurement for claims in (*tds, *snps)}
    assert len(measurements) == len(tds) + len(snps)
    assert replace(TDX, rtmr3="fe" * 48).measurement == TDX.measurement
    assert dataclasses.replace(SNP, chip_id="00" * 64).measurement == SNP.measurement
    assert isinstance(SNP, SnpClaims)
