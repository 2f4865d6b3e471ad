"""A regular expression in settings that can't be used is refused with its place, whatever it is that `re` says of it."""

from collections.abc import Callable

import pytest

from csi.broker import policy as broker_policy
from csi.cluster import settings as cluster_settings
from csi.core.errors import InvalidInput
from csi.guest import policy as guest_policy
from csi.node import config as node_config

UNUSABLE = {
    "a bracket": "(",
    "a number that C can't hold": "a{99999999999}",
    "a number of too many digits": "a{" + 5000 * "9" + "}",
    "many brackets": 5000 * "(" + 5000 * ")",
}
WORKLOAD = (
    'version = 1\n[[workload]]\nname = "w"\ntee = ["tdx"]\nimages = ["any"]\ninit_data = ["any"]\n%s = ["regex:%s"]\n'
)
RULE = (
    'version = 1\n[broker]\nurl = "https://broker:8443"\nca = "pem"\n'
    '[[volume]]\nname = "a"\nid_pattern = "%s"\nmount = "/a"\n'
)
HELPER = ("--namespace=a", "--identity=b", "--server=https://c")
READERS: dict[str, tuple[Callable[[str], object], str]] = {
    "volumes": (lambda text: broker_policy.parse(WORKLOAD % ("volumes", text)), "workload[0].volumes"),
    "resources": (lambda text: broker_policy.parse(WORKLOAD % ("resources", text)), "workload[0].resources"),
    "id_pattern": (lambda text: guest_policy.parse(RULE % text, "p.toml"), "volume[0].id_pattern"),
    "listConfig": (
        lambda text: node_config.parse(f"listConfig: {{vgs: {{include: ['{text}']}}}}", "n"),
        "listConfig.vgs.include[0]",
    ),
    "lvmFilter": (lambda text: node_config.parse(f"lvmFilter: ['r|{text}|']", "n"), "lvmFilter[0]"),
    "--kata-handlers": (
        lambda text: cluster_settings.load([*HELPER, f"--kata-handlers={text}"], {}),
        "kata-handlers",
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", UNUSABLE.values(), ids=UNUSABLE)
def test_a_pattern_that_cannot_be_used_is_refused_with_its_place(reader: str, text: str) -> None:
    read, place = READERS[reader]
    with pytest.raises(InvalidInput) as caught:
        read(text)
    assert caught.value.field.endswith(place)
