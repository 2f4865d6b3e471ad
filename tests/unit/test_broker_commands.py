"""The broker's command line: one command makes a working broker, a second one changes nothing, mistakes are explained."""

import hashlib
import io
import json
import random
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from csi.broker import rules as register
from csi.broker.audit import Event
from csi.broker.directory import BrokerDirectory
from csi.broker.main import main
from csi.broker.server import parse_address
from csi.broker.service import Broker
from csi.broker.verifiers.snp import SnpVerifier
from csi.core import process
from csi.core.errors import InvalidInput, Refused
from csi.core.sealed import Profile
from tests.fakes import amd
from tests.fakes.broker import INIT_DATA, make_directory

EVENT = Event(actor="test", action="tested", subject="pvc-1")


@pytest.fixture(autouse=True)
def hardened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `serve` does to its process must not be done to the tests' own; the list says that it was asked for."""
    asked: list[str] = []
    monkeypatch.setattr(process, "harden", lambda: asked.append("harden"))
    monkeypatch.setattr(threading, "stack_size", lambda _: 0)
    return asked


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEALED_LOCAL_BROKER_DIR", "SEALED_LOCAL_BROKER_MASTER_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_directory(tmp_path / "broker")
    return tmp_path / "broker"


def contents(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.iterdir())}


def test_init_makes_everything_and_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "new" / "broker"
    assert main(["init", str(root), "--host", "broker.example.com", "--host", "10.0.2.2"]) == 0
    said = capsys.readouterr().out
    assert f"{root}/ca.pem" in said
    assert f"next: sealed-local broker serve {root}" in said
    directory = BrokerDirectory(root)
    directory.load_broker({}).store.close()
    assert directory.load_policy().workloads == ()
    assert root.stat().st_mode & 0o777 == 0o700
    secret = {"master.key", "admin.token", "ca.key", "server.key", "token.key", "broker.sqlite"}
    assert {path.name for path in root.iterdir() if path.stat().st_mode & 0o077 == 0} >= secret


def test_a_second_init_overwrites_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(root)
    assert main(["init", str(root)]) == 0
    assert contents(root) == before
    assert "made" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["server.key", "token.key", "policy.toml", "admin.token", "master.key"])
def test_init_completes_what_a_crash_left_incomplete(root: Path, name: str) -> None:
    (root / name).unlink()
    assert main(["init", str(root)]) == 0
    BrokerDirectory(root).load_broker({}).store.close()


def test_init_makes_no_second_key_where_only_the_certificate_is_lost(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "ca.pem").unlink()
    before = contents(root)
    assert main(["init", str(root)]) == 1
    assert "ca.pem is gone" in capsys.readouterr().err
    assert contents(root) == before


def test_init_does_not_put_an_empty_register_in_place_of_a_lost_one(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "broker.sqlite").unlink()
    assert main(["init", str(root)]) == 1
    assert "format volumes that hold data" in capsys.readouterr().err
    assert not (root / "broker.sqlite").exists()


def test_init_trusts_no_write_ahead_log_without_its_database(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "broker.sqlite").rename(root / "broker.sqlite-wal")
    (root / "token.key").unlink()
    assert main(["init", str(root)]) == 1
    assert "broker.sqlite is gone" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0, 100, 4096])
@pytest.mark.parametrize(
    "arguments",
    [
        ["init"],
        ["serve", "--listen", "127.0.0.1:0"],
        ["volume", "list"],
        ["volume", "allocate", "pvc-2"],
        ["audit", "--verify"],
        ["resource", "delete", "a/b/c"],
    ],
)
def test_a_truncated_database_is_no_empty_register(
    root: Path, arguments: list[str], kept: int, capsys: pytest.CaptureFixture[str]
) -> None:
    database = root / "broker.sqlite"
    damaged = database.read_bytes()[:kept]
    database.write_bytes(damaged)
    assert main([*arguments, "--dir", str(root)]) == 1
    said = capsys.readouterr().err
    assert "broker.sqlite is not what" in said
    assert "Restore the newest backup" in said
    assert database.read_bytes() == damaged


def test_serve_forbids_core_dumps_before_it_reads_a_key(root: Path, hardened: list[str]) -> None:
    (root / "token.key").chmod(0o644)
    assert main(["serve", str(root), "--listen", "127.0.0.1:0"]) == 1
    assert hardened == ["harden"]


def test_an_operator_allocates_a_volume_in_advance(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["volume", "allocate", "--dir", str(root), "pvc-1"]
    assert main([*command, "--profile", "xts"]) == 0
    assert capsys.readouterr().out == "volume pvc-1 is allocated, profile xts\n"
    broker = BrokerDirectory(root).load_broker({})
    assert broker.store.volume("pvc-1") == register.allocate("pvc-1", Profile.XTS)
    stored = broker.store.release("pvc-1", lambda _: EVENT)
    assert stored is not None
    assert stored.wrapped_secret is not None
    assert len(broker.vault.unwrap(stored.wrapped_secret, "volume", "pvc-1", "1").reveal()) == 32
    first = broker.store.audit_entries()[0].event
    assert first == Event(actor="operator", action="allocated", subject="pvc-1", detail="profile=xts")
    assert main(command) == 0, "untouched since"
    assert "is allocated already" in capsys.readouterr().out
    assert broker.store.release("pvc-1", lambda _: EVENT) == stored, "its secret stays"
    assert [entry.event.action for entry in broker.store.audit_entries()] == ["allocated", "tested", "tested"]
    broker.close()


def test_a_volume_that_exists_is_not_allocated_again(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--dir", str(root), "pvc-1"]
    assert main(["volume", "allocate", *at]) == 0
    assert main(["volume", "retire", *at]) == 0
    assert main(["volume", "allocate", *at]) == 1
    assert "pvc-1 exists already: it is retired, profile xts, revision 2" in capsys.readouterr().err
    for wrong in ("none", "xts-hmac"):
        with pytest.raises(SystemExit):
            main(["volume", "allocate", *at, "--profile", wrong])
    assert main(["volume", "allocate", "--dir", str(root), "pvc/1"]) == 1
    assert "not a legal volume name" in capsys.readouterr().err


def test_init_does_not_replace_a_lost_master_key(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = BrokerDirectory(root).open_store()
    store.allocate(register.allocate("pvc-1", Profile.XTS), b"w", EVENT)
    store.close()
    (root / "master.key").unlink()
    assert main(["init", str(root)]) == 1
    assert "can't be read without it" in capsys.readouterr().err


def test_init_says_when_the_certificate_lacks_a_host(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(root), "--host", "other.example.com"]) == 1
    said = capsys.readouterr().err
    assert "does not cover other.example.com" in said
    assert "rm " in said


def test_a_wrong_host_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "b"), "--host", "bröker"]) == 1
    assert "--host" in capsys.readouterr().err


def test_volumes_are_listed_and_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = BrokerDirectory(root).open_store()
    store.allocate(register.allocate("pvc-1", Profile.XTS), b"w", EVENT)
    store.close()
    assert main(["volume", "list", "--dir", str(root)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["pvc-1", "allocated", "xts", "0", "1", "-"]
    assert main(["volume", "list", "--json", "--dir", str(root)]) == 0
    assert json.loads(capsys.readouterr().out)["volume_id"] == "pvc-1"
    assert main(["volume", "show", "--dir", str(root), "pvc-1"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "allocated"
    assert main(["volume", "show", "--dir", str(root), "pvc-2"]) == 1
    assert "pvc-2 is not in the register" in capsys.readouterr().err


def test_no_damage_ends_in_a_traceback(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = BrokerDirectory(root).open_store()
    for number in range(30):
        store.allocate(register.allocate(f"pvc-{number}", Profile.XTS), b"w" * 60, EVENT)
    store.close()
    path, dice, refused = root / "broker.sqlite", random.Random(9), 0
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(dice.choice((1, 8, 64))):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged)
        for leftover in ("-wal", "-shm"):
            path.with_name(path.name + leftover).unlink(missing_ok=True)
        statuses = [
            main([*verb, "--dir", str(root)]) for verb in (["audit", "--verify"], ["audit"], ["volume", "list"])
        ]
        refused += statuses[0]
    assert refused > 100
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("value", ["x'ff'", "CAST(x'ff' AS TEXT)", "12", "'[1]'"])
@pytest.mark.parametrize("column", ["record", "volume_id"])
def test_a_stored_record_of_any_type_is_explained(
    root: Path, column: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = BrokerDirectory(root).open_store()
    store.allocate(register.allocate("pvc-1", Profile.XTS), b"w", EVENT)
    store._database._db.execute(f"UPDATE volumes SET {column} = {value}")  # noqa: S608
    store.close()
    for verb in (
        ["volume", "list"],
        ["volume", "list", "--json"],
        ["volume", "show", "pvc-1"],
        ["volume", "retire", "pvc-1"],
    ):
        assert main([*verb[:2], "--dir", str(root), *verb[2:]]) in (0, 1)


def test_a_damaged_register_is_not_served(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = BrokerDirectory(root).open_store()
    for number in range(400):
        store.note(Event(actor="a", action="b", subject=str(number), detail="x" * 100))
    store.close()
    path = root / "broker.sqlite"
    damaged = bytearray(path.read_bytes())
    # In the middle of the audit log, which a start does not read otherwise.
    damaged[len(damaged) // 2 : len(damaged) // 2 + 4096] = bytes(4096)
    path.write_bytes(damaged)
    assert main(["serve", str(root), "--listen", "127.0.0.1:0"]) == 1
    assert "broker restore" in capsys.readouterr().err


def test_the_directory_stands_by_itself_or_after_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, arguments in enumerate([["init", "d0"], ["init", "--dir", "d1"]]):
        assert main(arguments) == 0
        assert f"next: sealed-local broker serve d{number}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d0", "d1"]
    for arguments in (["serve", "none"], ["serve", "--dir", "none"]):
        assert main(arguments) == 1
        assert "none/token.key does not exist" in capsys.readouterr().err


def test_the_directory_comes_from_the_environment(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALED_LOCAL_BROKER_DIR", str(root))
    assert main(["volume", "list"]) == 0
    assert capsys.readouterr().out.startswith("VOLUME")


def test_an_operator_retires_and_shreds(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = BrokerDirectory(root).open_store()
    store.allocate(register.allocate("pvc-1", Profile.XTS), b"w", EVENT)
    store.close()
    at = ["--dir", str(root), "pvc-1"]
    assert main(["volume", "reset", *at]) == 1
    assert "only a volume in state formatting" in capsys.readouterr().err
    assert main(["volume", "retire", *at]) == 0
    assert main(["volume", "reinstate", *at]) == 0
    assert main(["volume", "retire", *at]) == 0
    assert main(["volume", "shred", *at]) == 1
    assert "--yes" in capsys.readouterr().err
    assert main(["volume", "shred", "--yes", *at]) == 0
    assert capsys.readouterr().out.endswith("volume pvc-1 is shredded\n")
    assert main(["audit", "--dir", str(root)]) == 0
    actions = [json.loads(line)["event"]["action"] for line in capsys.readouterr().out.splitlines()]
    assert actions == ["tested", "retired", "reinstated", "retired", "shredded"]
    assert main(["audit", "--verify", "--dir", str(root)]) == 0
    assert "5 entries, the chain is whole" in capsys.readouterr().out
    assert main(["audit", "--head", "0" * 63 + "1", "--dir", str(root)]) == 1
    assert "cut off" in capsys.readouterr().err


def test_resources_are_put_and_destroyed(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_bytes(b"secret\n")
    assert main(["resource", "put", "--dir", str(root), "default/test/key", str(tmp_path / "key")]) == 0
    assert capsys.readouterr().out == "stored 7 bytes as kbs:///default/test/key\n"
    broker = BrokerDirectory(root).load_broker({})
    wrapped = broker.store.resource("default/test/key")
    assert broker.vault.unwrap(wrapped, "resource", "default/test/key").reveal() == b"secret\n"
    broker.store.close()
    assert main(["resource", "delete", "--dir", str(root), "default/test/key"]) == 0
    for arguments in (["default/key", "x"], ["default/test/key", str(tmp_path / "none")], ["a/b/c", str(tmp_path)]):
        assert main(["resource", "put", "--dir", str(root), *arguments]) == 1
    assert "is a directory" in capsys.readouterr().err


def test_a_resource_that_no_guest_could_fetch_is_not_stored(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 2 * 1024 * 1024
    (tmp_path / "large").write_bytes(bytes(limit + 1))
    put = ["resource", "put", "--dir", str(root), "default/test/key"]
    assert main([*put, str(tmp_path / "large")]) == 1
    assert f"a resource has at most {limit} bytes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(bytes(limit + 1))))
    assert main([*put, "-"]) == 1
    (tmp_path / "large").write_bytes(bytes(limit))
    assert main([*put, str(tmp_path / "large")]) == 0


def test_a_master_key_that_is_not_the_databases_is_refused_at_once(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    BrokerDirectory(root).load_broker({}).store.close()
    monkeypatch.setenv("SEALED_LOCAL_BROKER_MASTER_KEY", "A" * 43 + "=")
    assert main(["serve", str(root), "--listen", "127.0.0.1:0"]) == 1
    assert "not the master key" in capsys.readouterr().err
    (root / "file").write_bytes(b"x")
    assert main(["resource", "put", "--dir", str(root), "a/b/c", str(root / "file")]) == 1


def test_init_data_prints_what_the_policy_wants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "initdata.toml").write_text(INIT_DATA)
    assert main(["init-data", str(tmp_path / "initdata.toml")]) == 0
    assert capsys.readouterr().out == f"sha384:{hashlib.sha384(INIT_DATA.encode()).hexdigest()}\n"
    (tmp_path / "initdata.toml").write_text("version = 1")
    assert main(["init-data", str(tmp_path / "initdata.toml")]) == 1
    assert "initdata.toml.version" in capsys.readouterr().err
    (tmp_path / "initdata.toml").write_text(INIT_DATA + "#" * 65536)
    assert main(["init-data", str(tmp_path / "initdata.toml")]) == 1
    assert "the broker reads at most 65536" in capsys.readouterr().err


def test_the_policy_is_checked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", "--dir", str(root)]) == 0
    assert "ALLOWED, development only" in capsys.readouterr().out
    (root / "policy.toml").write_text("version = 1\nallow_all = true")
    assert main(["policy", "check", "--dir", str(root)]) == 1
    assert "allow_all" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["volume", "list"], ["audit"], ["policy", "check"], ["serve"], ["resource", "delete", "a/b/c"]]
)
def test_a_directory_without_a_broker_says_how_to_make_one(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--dir", str(tmp_path / "none")]) == 1
    assert "broker init" in capsys.readouterr().err


def test_a_policy_that_others_can_change_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "policy.toml").chmod(0o664)
    assert main(["serve", str(root), "--listen", "127.0.0.1:0"]) == 1
    assert "chmod go-w" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["master.key", "token.key", "admin.token", "server.key"])
def test_serve_refuses_keys_that_others_can_read(root: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (root / name).chmod(0o644)
    assert main(["serve", str(root), "--listen", "127.0.0.1:0"]) == 1
    assert f"{name} has mode 0644" in capsys.readouterr().err


def test_an_admin_token_that_can_be_guessed_is_refused(root: Path) -> None:
    (root / "admin.token").write_text("admin\n")
    with pytest.raises(Refused, match="guessed"):
        BrokerDirectory(root).load_admin_token()
    (root / "admin.token").unlink()
    assert BrokerDirectory(root).load_admin_token() is None


def test_a_damaged_key_is_reported_without_its_text(root: Path) -> None:
    (root / "token.key").write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    with pytest.raises(InvalidInput, match=r"token\.pem") as caught:
        BrokerDirectory(root).load_broker({})
    assert "c2VjcmV0" not in str(caught.value)


def test_addresses() -> None:
    assert parse_address("0.0.0.0:8443") == ("0.0.0.0", 8443)
    assert parse_address("[::1]:0") == ("::1", 0)
    for text in ("", "8443", ":8443", "host:", "host:x", "host:65536"):
        with pytest.raises(InvalidInput, match="--listen"):
            parse_address(text)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["volume", "--help"], ["serve", "--help"], ["volume", "shred", "--help"]]
)
def test_help_exists(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "sealed-local broker" in capsys.readouterr().out


def test_a_test_authority_is_trusted_loudly_and_in_the_place_of_amds(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[Broker] = []

    def serve(directory: BrokerDirectory, broker: Broker, address: tuple[str, int]) -> None:
        served.append(broker)
        broker.close()

    monkeypatch.setattr("csi.broker.server.serve", serve)
    platform = amd.Platform()
    pem = tmp_path / "authority.pem"
    pem.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in (platform.root(), platform.intermediate())))
    command = ["serve", str(root), "--listen", "127.0.0.1:0"]
    assert main(command) == 0
    assert "DEVELOPMENT ONLY" not in capsys.readouterr().err
    assert main([*command, "--snp-test-authority", str(pem)]) == 0
    assert "DEVELOPMENT ONLY: SEV-SNP evidence is verified against a test authority" in capsys.readouterr().err
    verifiers = [broker.verifiers["snp"] for broker in served]
    assert [verifier.roots.test for verifier in verifiers if isinstance(verifier, SnpVerifier)] == [False, True]
    pem.write_text("nothing")
    assert main([*command, "--snp-test-authority", str(pem)]) == 1
    assert "test authority: not certificates" in capsys.readouterr().err
