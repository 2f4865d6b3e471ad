"""`sealed-local guest`: open, close, status and run. Modules are imported when a verb needs them: an emulated or small
guest pays for every one.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csi.core import errors

if TYPE_CHECKING:
    from csi.core.command import Runner
    from csi.guest.policy import VolumePolicy
    from csi.kbs.register import Register

_LONGEST_WAIT_SECONDS = 86400.0
_STATUS_FOLDER = Path("/run/sealed-local/volumes")

_EXIT_CODES: tuple[tuple[type[BaseException], int, str], ...] = (
    (errors.InvalidInput, 2, "wrong option or policy, or a volume that the policy does not allow"),
    (errors.Blanked, 4, "a formatted volume shows nothing: wrong device or lost data; never formatted again"),
    (errors.RolledBack, 5, "an older state of the volume, or of the broker's database"),
    (errors.Untrusted, 3, "what the host shows does not verify (changed header, other volume, wrong mapping)"),
    (errors.NotReleased, 6, "the broker does not release the key to this guest"),
    (errors.ForeignContent, 7, "a device that should be new holds something"),
    (errors.NotFound, 8, "no such device or volume"),
    (errors.Unavailable, 9, "the broker, the pinned one, can't be reached or doesn't answer sensibly; try again"),
    (errors.Refused, 10, "the volume's state or use forbids it; the message says what to do"),
    (errors.Unsupported, 12, "the broker asks for what this guest can't do"),
    (errors.Busy, 11, "another guest, or another call in this one, works on the volume at this moment; try again"),
)

_DESCRIPTION = """Inside the confidential guest: attests to the broker, gets the volume's key, verifies the device, mounts
its filesystem. It believes the measured policy, the broker and its own checks, and nothing that the host says. It
formats only what the register says was never formatted."""

_EPILOG = """The policy (TOML) is part of the measured init-data or image; --policy takes it or the whole init-data text:

  version = 1
  [broker]
  url = "https://10.0.2.2:8443"
  ca = '''-----BEGIN CERTIFICATE----- ...'''   # the only authority that is trusted
  allow_sample = false                          # true: development without a TEE; proves nothing
  timeout_seconds = 30                          # of one exchange
  [[volume]]
  name = "data"                                 # what --volume may say
  id = "pvc-5d1f..."                            # or id_pattern = "pvc-.*": the host then chooses among all
                                                # that match, an empty new volume included
  mount = "/data"                               # must not be a mount point yet
  profile = "xts"
  fstype = "ext4"                               # or xfs
  access = "rw"                                 # or ro
  format = "once"                               # or never: only what is formatted already
  options = ["noatime"]                         # of the mount

Exit status: 0 done; 1 a tool failed; {codes}.
See docs/guest.md."""


def parser() -> argparse.ArgumentParser:
    """The command line of `sealed-local guest`."""
    codes = "; ".join(f"{code} {text}" for _, code, text in sorted(_EXIT_CODES, key=lambda item: item[1]))
    made = argparse.ArgumentParser(
        prog="sealed-local guest",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(codes=codes),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")
    opened = verbs.add_parser("open", help="unlock and mount a volume; once more is fine")
    _common(opened)
    opened.add_argument("--json", action="store_true", help="print the result as JSON")
    closed = verbs.add_parser("close", help="unmount and close a volume; one that isn't open is fine")
    closed.add_argument("--volume", required=True, help="volume id, as `status` shows it")
    shown = verbs.add_parser("status", help="show the volumes that are open")
    shown.add_argument("--json", action="store_true", help="as JSON")
    run = verbs.add_parser("run", help="open a volume, run a command, close it; the command's status is the answer")
    _common(run)
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND [ARGUMENTS]")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run one verb; answers the exit status."""
    given = parser().parse_args(arguments)
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {
        "open": _open,
        "close": _close,
        "status": _status,
        "run": _run,
    }
    try:
        return verbs[given.verb](given)
    except (errors.SealedLocalError, OSError) as error:
        print(f"sealed-local guest: {error}", file=sys.stderr)
        return next((code for kind, code, _ in _EXIT_CODES if isinstance(error, kind)), 1)


def _common(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--policy", required=True, help="policy or init-data file (part of what is measured)")
    verb.add_argument(
        "--volume", required=True, help="volume id, or the name of a rule of the policy that has a fixed id"
    )
    verb.add_argument("--id", help="volume id, when --volume is the name of a rule with a pattern")
    verb.add_argument(
        "--device", help="block device; a formatted volume is found by its authenticated records when it is left out"
    )
    verb.add_argument(
        "--wait", type=_seconds, default=30.0, metavar="SECONDS", help="how long to wait for the device (30)"
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _LONGEST_WAIT_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to {_LONGEST_WAIT_SECONDS:g}")
    return value


def _open(given: argparse.Namespace) -> int:
    result = _unlock(given)
    if given.json:
        print(json.dumps(result))
    return 0


def _unlock(given: argparse.Namespace) -> dict[str, Any]:
    from csi.core import process
    from csi.core.command import LocalRunner
    from csi.guest import devices
    from csi.guest import policy as guest_policy
    from csi.guest.attest.kbs_client import BrokerRegister
    from csi.guest.unlock import Unlocker

    started = time.monotonic()

    def progress(text: str) -> None:
        print(f"[{time.monotonic() - started:6.2f} s] {text}", file=sys.stderr, flush=True)

    process.harden()
    policy = guest_policy.parse(_read_policy(given.policy), given.policy)
    rule, volume_id = policy.resolve(given.volume, given.id)
    runner = LocalRunner()
    with _only_one(volume_id), closing(BrokerRegister(policy.broker)) as register:
        device = (
            devices.wait_for(given.device, given.wait)
            if given.device
            else _search(runner, register, volume_id, rule, given.wait)
        )
        unlocker = Unlocker(
            volume_id=volume_id, rule=rule, device=device, register=register, runner=runner, progress=progress
        )
        opened = unlocker.unlock()
    result = {
        name: str(getattr(opened, name)) for name in ("volume_id", "device", "mapping", "mount", "profile", "freshness")
    }
    facts = {name: getattr(opened, name) for name in ("generation", "formatted_now", "mounted_now", "read_only")}
    _remember(volume_id, result | facts)
    return result | facts


@contextmanager
def _only_one(volume_id: str) -> Iterator[None]:
    """One `open`, `close` or `run` at its ends at a time. Raises `Busy`: two would close one another's mapping."""
    from csi.core import files

    _STATUS_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = files.take_named_lock(_STATUS_FOLDER / "lock", volume_id)
    if descriptor is None:
        raise errors.Busy(f"another sealed-local opens or closes volume {volume_id} at this moment; try again")
    try:
        yield
    finally:
        os.close(descriptor)


def _search(runner: "Runner", register: "Register", volume_id: str, rule: "VolumePolicy", seconds: float) -> str:
    from csi.guest import find
    from csi.guest.seal import keys

    mapped = find.mapped_device(runner, volume_id)
    if mapped is not None:
        return mapped
    record, secret = register.open(volume_id, rule.profile)
    return find.volume_device(record, keys.derive(secret, volume_id, record.key_version), seconds)


def _close(given: argparse.Namespace) -> int:
    from csi.core.command import LocalRunner
    from csi.guest.unlock import close

    with _only_one(given.volume):
        was_open = close(LocalRunner(), given.volume)
        _status_file(given.volume).unlink(missing_ok=True)
    print(f"{given.volume}: {'closed' if was_open else 'was not open'}", file=sys.stderr)
    return 0


def _status(given: argparse.Namespace) -> int:
    """Shows what `open` left, checked against the kernel's mounts of now."""
    from csi.core import mounts

    mounted = {mount.target for mount in mounts.listed()}
    files = sorted(_STATUS_FOLDER.glob("*.json")) if _STATUS_FOLDER.is_dir() else []
    volumes = [json.loads(file.read_text()) for file in files]
    for volume in volumes:
        volume["mounted"] = volume["mount"] in mounted
    if given.json:
        print(json.dumps(volumes))
        return 0
    for volume in volumes:
        state = "mounted" if volume["mounted"] else "NOT MOUNTED"
        print(
            f"{volume['volume_id']}: {state} at {volume['mount']}, profile {volume['profile']}, "
            f"generation {volume['generation']}, freshness {volume['freshness']}"
        )
    if not volumes:
        print("no volume is open")
    return 0


def _run(given: argparse.Namespace) -> int:
    from csi.guest.supervise import supervise

    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        raise errors.InvalidInput("command", "is missing; write: run --policy FILE --volume ID -- COMMAND")
    result = _unlock(given)
    if not result["mounted_now"]:
        # Who ends first would take the volume from under the other.
        raise errors.InUse(
            f"volume {result['volume_id']} is open already; close it first, or start the command without run"
        )
    try:
        return supervise(command)
    finally:
        given.volume = result["volume_id"]
        _close(given)


def _read_policy(path: str) -> str:
    try:
        return Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise errors.InvalidInput("--policy", f"{path} can't be read: {reason}") from error


def _status_file(volume_id: str) -> Path:
    from csi.guest.seal.device_mapper import mapping_name

    return _STATUS_FOLDER / f"{mapping_name(volume_id)}.json"


def _remember(volume_id: str, facts: dict[str, Any]) -> None:
    """For `status` only, so a full or read-only /run does not take away a volume that is mounted."""
    from csi.core.files import write_atomic

    path = _status_file(volume_id)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(path, json.dumps(facts).encode(), mode=0o644, temporary=path.with_suffix(".new"), durable=False)
    except OSError as error:
        print(
            f"sealed-local guest: {path} can't be written ({error.strerror}); `status` won't show it", file=sys.stderr
        )
