"""The command line of `sealed-local guest`: each option's name, default, check and meaning, declared once.

The tables in docs/guest.md are written from here by `make tables`, so a meaning is a whole sentence or two. There are no
environment variables: who starts a container chooses them, and the command line is what a policy of the runtime checks.
"""

import argparse

from csi.core import errors

_LONGEST_WAIT_SECONDS = 86400.0

EXIT_CODES: tuple[tuple[type[BaseException], int, str], ...] = (
    (errors.InvalidInput, 2, "wrong option or policy, or a volume that the policy does not allow"),
    (errors.Blanked, 4, "a formatted volume shows nothing: wrong device or lost data; never formatted again"),
    (errors.RolledBack, 5, "an older state of the volume, or of the broker's database"),
    (errors.Untrusted, 3, "what the host shows does not verify (changed header, other volume, wrong mapping)"),
    (errors.NotReleased, 6, "the broker does not release the key to this guest"),
    (errors.ForeignContent, 7, "a device that should be new holds something"),
    (errors.NotFound, 8, "no such device, volume or root resource"),
    (errors.Unavailable, 9, "the broker, the pinned one, can't be reached or sends no sensible answer; try again"),
    (errors.Refused, 10, "the volume's state or use forbids it; the message says what to do"),
    (errors.Unsupported, 12, "the broker asks for what this guest can't do"),
    (
        errors.LeaseLost,
        13,
        "the volume may not be written any more: another guest, an operator or a silent broker ended it",
    ),
    (errors.Busy, 11, "another guest, or another call in this one, works on the volume at this moment; try again"),
)

_DESCRIPTION = """Inside the confidential guest: attests to the broker, gets the volume's key, verifies the device, mounts
its filesystem. It believes the measured policy, the broker and its own checks, and nothing that the host says. It
formats only what the register says was never formatted; at a broker without a register (Trustee), only a
device that shows nothing, if the policy permits it."""

_EPILOG = """The policy (TOML) is part of the measured init-data or image; --policy takes it or the whole init-data text:

  version = 1
  [broker]
  url = "https://10.0.2.2:8443"
  ca = '''-----BEGIN CERTIFICATE----- ...'''   # the only authority that is trusted
  allow_sample = false                          # true: development without a TEE; proves nothing
  timeout_seconds = 30                          # of one exchange
  # kind = "trustee"                            # no register: keys are derived from this resource, nobody
  # root = "kbs:///default/sealed-local/root"   # knows which state is the newest (freshness: unverified)
  [[volume]]
  name = "data"                                 # what --volume may say
  id = "pvc-5d1f..."                            # or id_pattern = "pvc-.*": the host then chooses among all
                                                # that match, an empty new volume included
  mount = "/data"                               # must not be a mount point yet; "FOLDER/*" for serve
  profile = "xts"
  fstype = "ext4"                               # or xfs
  access = "rw"                                 # or ro
  format = "once"                               # or never: only what is formatted already
  options = ["noatime"]                         # of the mount
  without_broker = "read-only"                  # or go-on: when the lease can't be renewed in time
  # without_leases = true                       # kind "trustee", access "rw": nothing stops a second writer

Exit status: 0 done; 1 a tool failed; {codes}.
See docs/guest.md."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows what is declared beside a meaning, too."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return meaning(action)


def meaning(option: argparse.Action) -> str:
    """What an option means, and whether it must be given or what counts if it is not."""
    if option.required and option.option_strings:
        return f"{option.help} (required)"
    return f"{option.help} (default: {option.default:g})" if isinstance(option.default, float) else str(option.help)


def parser() -> argparse.ArgumentParser:
    """The command line of `sealed-local guest`."""
    codes = "; ".join(f"{code} {text}" for _, code, text in sorted(EXIT_CODES, key=lambda item: item[1]))
    made = argparse.ArgumentParser(
        prog="sealed-local guest",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(codes=codes),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")
    opened = verbs.add_parser("open", help="unlock and mount a volume; once more is fine", formatter_class=_Help)
    _what_to_open(opened)
    _for_the_lease(opened)
    opened.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    opened.add_argument(
        "--no-mount",
        action="store_true",
        help="only map a formatted volume, after all checks, and print the mapping's path: for `e2fsck` or `xfs_repair`. "
        "`close` takes it away",
    )
    closed = verbs.add_parser(
        "close", help="unmount and close a volume; one that is not open is fine", formatter_class=_Help
    )
    closed.add_argument("--volume", required=True, help="the volume id, as `status` shows it, never the name of a rule")
    shown = verbs.add_parser("status", help="show the volumes that are open", formatter_class=_Help)
    shown.add_argument("--json", action="store_true", help="print a JSON list of them")
    run = verbs.add_parser(
        "run", help="open a volume, run a command, close it; the exit status is the command's", formatter_class=_Help
    )
    _what_to_open(run)
    _for_the_lease(run)
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND [ARGUMENTS]")
    _for_repairs(verbs)
    _for_pods(verbs)
    _for_the_agent(verbs)
    return made


def _for_repairs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    inspect = verbs.add_parser(
        "inspect", help="say what the disk shows and what the register says; change nothing", formatter_class=_Help
    )
    _what_to_open(inspect)
    repaired = verbs.add_parser(
        "repair",
        help="write header copies and state record anew that can't be read: from the other copy, the broker's copy, and a "
        "person's word at the broker",
        formatter_class=_Help,
    )
    _what_to_open(repaired)
    recovered = verbs.add_parser(
        "recover-key", help="write a volume's passphrase to a new file, for disaster recovery", formatter_class=_Help
    )
    _which_volume(recovered)
    recovered.add_argument(
        "--to",
        required=True,
        metavar="FILE",
        help="a new file of mode 0600 for the 32 raw bytes; on a memory filesystem, of a machine that the tenant trusts",
    )


def _for_pods(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    made = verbs.add_parser(
        "initdata", help="print the init-data that carries a policy, for a pod of Kata", formatter_class=_Help
    )
    made.add_argument("--policy", required=True, help="the policy file; checked as the guest checks it")
    made.add_argument(
        "--algorithm",
        choices=("sha256", "sha384", "sha512"),
        default="sha384",
        help="the hash that the TEE measures init-data with: `sha256`, `sha384` (the default) or `sha512`",
    )
    made.add_argument(
        "--annotation",
        action="store_true",
        help="print it as the value of the pod's annotation `io.katacontainers.config.hypervisor.cc_init_data`",
    )
    _for_agent_policy(verbs)


def _for_agent_policy(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    allowed = verbs.add_parser(
        "agent-policy", help="print a kata-agent policy with the entry of a direct volume in it", formatter_class=_Help
    )
    allowed.add_argument("--policy", required=True, help="what `genpolicy --raw-out` printed")
    allowed.add_argument(
        "--mount", required=True, metavar="PATH", help="where the pod mounts the claim, its `mountPath`"
    )
    allowed.add_argument(
        "--container", metavar="NAME", help="only in this container; left out, in every one that mounts a claim there"
    )
    allowed.add_argument(
        "--fstype", choices=("ext4", "xfs"), default="ext4", help="of the class: `ext4` (the default), `xfs`"
    )
    allowed.add_argument(
        "--sealed",
        action="store_true",
        help="a sealed volume whose record asks the guest's confidential-data-hub to mount it",
    )


def _for_the_agent(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    served = verbs.add_parser(
        "serve",
        help="stand where a kata-agent starts its confidential-data-hub, and mount the policy's volumes when it asks",
        formatter_class=_Help,
    )
    served.add_argument(
        "--policy",
        required=True,
        help="the policy file, or the whole init-data text that holds it. Read at each request; where there is none, no "
        "volume is ours and every request is passed on",
    )
    served.add_argument(
        "--cdh",
        metavar="PROGRAM",
        help="the real confidential-data-hub. It is started behind, on a socket of its own, and again when it ends; it "
        "gets everything but the mounts of the policy's volumes. Left out, only those mounts are answered",
    )
    served.add_argument(
        "--config",
        "-c",
        metavar="FILE",
        help="the confidential-data-hub's configuration, as the agent names it; it gets a copy with another socket. Left "
        "out, it gets what it would take from the kernel's command line",
    )
    served.add_argument(
        "--socket",
        default="/run/confidential-containers/cdh.sock",
        help="the socket that the agent waits for. Whatever is there is replaced (default: "
        "`/run/confidential-containers/cdh.sock`)",
    )


def _what_to_open(verb: argparse.ArgumentParser) -> None:
    _which_volume(verb)
    verb.add_argument(
        "--device",
        help="the block device; links such as `/dev/disk/by-id/…` are followed. Left out, a formatted volume is found by "
        "its authenticated records. A new volume needs it",
    )
    verb.add_argument(
        "--wait", type=_seconds, default=30.0, metavar="SECONDS", help="how long to wait for the device, in seconds"
    )


def _for_the_lease(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--wait-for-lease",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="how long to try again, in seconds, while another guest has the volume. The lease of one that was killed "
        "lasts as long as the broker's policy says, a minute if it says nothing",
    )


def _which_volume(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--policy",
        required=True,
        help="the policy file, or the whole init-data text that holds it; part of what is measured",
    )
    verb.add_argument(
        "--volume",
        required=True,
        help="the volume id as the host names it: the first rule of the policy that allows it counts. Or the name of a "
        "rule that has a fixed `id`. With `--id` it is always a rule's name",
    )
    verb.add_argument(
        "--id",
        help="the volume id, when `--volume` is the name of a rule with `id_pattern`. The rule must allow it; it may be "
        "given for a fixed `id`, too",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _LONGEST_WAIT_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {_LONGEST_WAIT_SECONDS:g}")
    return value
