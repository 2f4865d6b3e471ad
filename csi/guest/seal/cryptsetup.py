"""cryptsetup by its command line, with the exact options of format v1. It is given private copies, never a host's header.

Exit statuses and options were checked with 2.6.1, 2.7.5 and 2.8.8. Key material goes by standard input only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, assert_never

from csi.core.command import Runner
from csi.core.errors import CommandError, InUse, Tampered
from csi.core.sealed import PAYLOAD_OFFSET, Profile
from csi.core.secret import Secret
from csi.core.size import SECTOR_BYTES
from csi.guest.seal.memfd import path_of
from csi.guest.seal.profiles import unsealed

_SECONDS: Final = 120.0
_WRONG_KEY: Final = 2
_NOT_ACTIVE: Final = 4
_BUSY: Final = 5
_LOCK_FOLDER: Final = Path("/run/cryptsetup")
# Without udev in the guest, device-mapper must make its nodes itself and never wait for a udev cookie.
_ENVIRONMENT: Final = {"DM_DISABLE_UDEV": "1"}
_KEY: Final = ("--key-file", "-", "--keyfile-size", "32")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """The options by which one profile differs from another."""

    format: tuple[str, ...]
    open: tuple[str, ...]


_XTS: Final = _Words(
    format=("--cipher", "aes-xts-plain64", "--key-size", "512", "--sector-size", "4096"),
    open=("--perf-no_read_workqueue", "--perf-no_write_workqueue"),
)


def luks_format(
    runner: Runner,
    profile: Profile,
    *,
    header: int,
    device: str,
    passphrase: Secret,
    volume_key: int,
    luks_uuid: str,
) -> None:
    """Make a new header in the memory file `header`, for the key that the memory file `volume_key` holds.

    Writes nothing to `device`, which must be real.
    """
    argv = [
        "cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--header", path_of(header),
        "--offset", str(PAYLOAD_OFFSET // SECTOR_BYTES),
        # Without these two the keyslot area would be stretched over copy B and the state records.
        "--luks2-metadata-size", "16k", "--luks2-keyslots-size", "16744448",
        "--uuid", luks_uuid, "--label", "", "--key-slot", "0", *_words(profile).format, "--hash", "sha256",
        # The passphrase is 256 random bits: a costly derivation would add nothing but time and memory.
        "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--use-urandom", *_KEY,
        "--volume-key-file", path_of(volume_key), device,
    ]  # fmt: skip
    _run(runner, argv, (header, volume_key), passphrase)


def open_volume(
    runner: Runner, profile: Profile, *, header: int, device: str, name: str, passphrase: Secret, read_only: bool
) -> None:
    """Map `device` as `/dev/mapper/NAME` by the private header copy. Raises `Tampered` when the key does not fit."""
    argv = [
        "cryptsetup", "open", "--type", "luks2", "--header", path_of(header), "--key-slot", "0",
        "--disable-external-tokens", *_words(profile).open,
        *(["--readonly"] if read_only else []), *_KEY, device, name,
    ]  # fmt: skip
    try:
        _run(runner, argv, (header,), passphrase)
    except CommandError as error:
        if error.returncode == _WRONG_KEY:
            raise Tampered("the volume's key does not open its own header; nothing was changed") from error
        raise


def close_volume(runner: Runner, name: str) -> None:
    """Take the mapping away; one that isn't there is fine. Raises `InUse` when a process or a mount holds it."""
    argv = ["cryptsetup", "close", name]
    _prepare()
    try:
        runner.run(argv, timeout=_SECONDS, env=_ENVIRONMENT, ok=(0, _NOT_ACTIVE))
    except CommandError as error:
        if error.returncode == _BUSY:
            raise InUse(
                f"/dev/mapper/{name} is open; end the process that uses it, or unmount it in the namespace that has it"
            ) from error
        raise


def _words(profile: Profile) -> _Words:
    match profile:
        case Profile.XTS:
            return _XTS
        case Profile.NONE:
            raise unsealed()
        case _:
            assert_never(profile)


def _run(runner: Runner, argv: list[str], files: tuple[int, ...], passphrase: Secret) -> None:
    _prepare()
    runner.run(argv, timeout=_SECONDS, stdin=passphrase, env=_ENVIRONMENT, pass_fds=files)


def _prepare() -> None:
    _LOCK_FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
