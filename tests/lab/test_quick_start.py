"""The quick start's steps by hand, carried out in the lab's node as the page writes them."""

import json
import re
import sys

import pytest

from lab.node import REPOSITORY, Node

pytestmark = pytest.mark.lab

_PAGE = REPOSITORY / "docs/quick-start.md"


def _commands() -> str:
    """The console blocks of the section but the first, which installs: here the program runs from the checkout."""
    section = _PAGE.read_text().partition("## 2. By hand")[2].partition("## 3.")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    assert "pip install" in blocks[0]
    return "\n".join(_without_output(block) for block in blocks[1:])


def _without_output(block: str) -> str:
    """Lines after the prompt `# `, and the text that goes into a file; not what a command answers."""
    kept, in_text = [], False
    for line in block.splitlines():
        if line.startswith("# "):
            kept.append(line[2:])
            in_text = line.endswith("<<EOF")
        elif in_text:
            kept.append(line)
            in_text = line != "EOF"
    return "\n".join(kept)


def test_the_steps_by_hand_do_what_the_page_says(node: Node) -> None:
    commands = _commands()
    wait = "until (exec 3<>/dev/tcp/127.0.0.1/8443) 2>/dev/null; do sleep 0.1; done"
    # In a script the broker must not keep the output open, and has to be waited for as a person would.
    served = commands.replace("127.0.0.1:8443 &", f"127.0.0.1:8443 >/tmp/broker.log 2>&1 &\n{wait}")
    assert served != commands
    # grep answers 1 when it counts 0, which the page shows.
    script = f"""set -e
sealed-local() {{ {sys.executable} -m csi "$@"; }}
{served.replace("grep -c hello /tmp/disk.img", "grep -c hello /tmp/disk.img || true")}
kill %1
"""
    said = node.run(["bash", "-c", script], timeout=240).text.splitlines()
    opened = json.loads(next(line for line in said if line.startswith("{")))
    assert (opened["formatted_now"], opened["mount"]) == (False, "/mnt/sealed")
    assert "0" in said, "the text lies in clear on the disk"
    assert "hello" in said
    assert said[-1] == "volume pvc-demo is shredded"
