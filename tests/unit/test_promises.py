"""The list of `make mutate` is true: what it names is there, so that no promise drops out of it by a rename."""

import ast
import re

import pytest

from tests.mutation.promises import ROOT, Promise, Replacement, WrongList, function_named, load, place_of

LIST = load()
NAMED = {
    "csi/guest/attest/https.py",
    "csi/guest/seal/memfd.py",
    "csi/core/process.py",
    "csi/guest/unlock.py",
    "csi/guest/seal/state_record.py",
    "csi/guest/attest/kbs_client.py",
    "csi/broker/rules.py",
    "csi/broker/service.py",
    "csi/core/command.py",
    "csi/core/disks.py",
    "csi/core/files.py",
    "csi/node/locks.py",
    "csi/node/lvm/process.py",
    "csi/node/lvm/proved.py",
    "csi/node/lvm/settings.py",
    "csi/node/lvm/turns.py",
    "csi/node/plan/publish.py",
    "csi/node/plan/stage.py",
    "csi/node/rpc/csi_requests.py",
    "csi/guest/decide.py",
}
"""Where promises of security and data safety are kept; a file that leaves the list leaves it here, too, and is noticed."""

TEST = re.compile(r"(?P<file>tests/\S+\.py)(::(?P<name>test_\w+))?")


def test_every_place_that_keeps_a_promise_is_in_the_list() -> None:
    assert {promise.file for promise in LIST.promises} >= NAMED


@pytest.mark.parametrize("promise", LIST.promises, ids=lambda promise: promise.says)
def test_a_promise_names_code_and_tests_that_are_there(promise: Promise) -> None:
    source = (ROOT / promise.file).read_text()
    tree = ast.parse(source)
    for name in promise.functions:
        function_named(tree, name)
    for replacement in promise.without:
        place_of(source, replacement)
        ast.parse(source.replace(replacement.old, replacement.new))
    assert promise.functions or promise.without
    assert promise.tests
    for test in promise.tests:
        found = TEST.fullmatch(test)
        assert found is not None, test
        text = (ROOT / found["file"]).read_text()
        assert found["name"] is None or f"def {found['name']}(" in text, test


def test_an_accepted_mutant_has_its_line_and_its_reason() -> None:
    for entry in LIST.accepted:
        lines = {line.strip() for line in (ROOT / entry.file).read_text().splitlines()}
        assert entry.line in lines, entry
        assert entry.becomes != entry.line
        assert len(entry.reason) > 20, entry


def test_a_name_that_leads_nowhere_is_noticed() -> None:
    source = "class A:\n    def b(self): ...\n\n\ndef c(): ...\n"
    tree = ast.parse(source)
    assert function_named(tree, "A.b").name == "b"
    for name in ("b", "A", "A.c", "d"):
        with pytest.raises(WrongList):
            function_named(tree, name)
    assert place_of(source, Replacement(old="def c", new="")) == source.index("def c")
    for text in ("def", "def d"):
        with pytest.raises(WrongList):
            place_of(source, Replacement(old=text, new=""))
