"""Claims of guests that never ran, for tests of the policy."""

from csi.broker.claims import SnpClaims, SnpKey, SnpPolicy, SnpProduct, SnpTcb, TcbStatus, TdAttributes, TdxClaims

INIT_DATA_DIGEST = "sha384:" + "ab" * 48

TDX = TdxClaims(
    mrtd="01" * 48,
    rtmr0="10" * 48,
    rtmr1="11" * 48,
    rtmr2="12" * 48,
    rtmr3="13" * 48,
    mrconfigid="ab" * 48,
    mrowner="00" * 48,
    mrownerconfig="00" * 48,
    mrseam="5b" * 48,
    mrsignerseam="00" * 48,
    xfam="e702060000000000",
    attributes=TdAttributes.parse(bytes.fromhex("0000001000000000")),
    report_data="00" * 64,
    tee_tcb_svn="06010300000000000000000000000000",
    tcb_status=TcbStatus.UP_TO_DATE,
    current_tcb_status=TcbStatus.UP_TO_DATE,
    advisories=(),
    tcb_evaluation=17,
    fmspc="B0C06F000000",
    init_data=INIT_DATA_DIGEST,
)

TCB = SnpTcb(bootloader=3, tee=0, snp=8, microcode=115)

SNP = SnpClaims(
    launch_measurement="02" * 48,
    host_data="ab" * 32,
    family_id="01" * 16,
    image_id="02" * 16,
    id_key_digest="57" * 48,
    author_key_digest="00" * 48,
    policy=SnpPolicy.parse(0x30000),
    vmpl=0,
    guest_svn=2,
    chip_id="9e" * 64,
    product=SnpProduct.MILAN,
    signing_key=SnpKey.VCEK,
    current_tcb=TCB,
    reported_tcb=TCB,
    committed_tcb=TCB,
    launch_tcb=TCB,
    report_data="00" * 64,
    init_data=INIT_DATA_DIGEST,
)
