"""A broker's directory: what lies where, making it (`broker init`), and loading it. Never overwrites what is there."""

import datetime as dt
import os
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from csi.broker import certificates, seals, turns, vault
from csi.broker import policy as broker_policy
from csi.broker.certificates import Pair
from csi.broker.collateral import CollateralFolder
from csi.broker.database import Database, holds_entries, holds_secrets
from csi.broker.first_policy import POLICY_TEXT
from csi.broker.liveness import Liveness
from csi.broker.master_key import MasterKeyFile, load_wrapper
from csi.broker.release import ReleasePolicy
from csi.broker.seals import Seals
from csi.broker.service import Broker
from csi.broker.signs import Signs
from csi.broker.sqlite import Sqlite
from csi.broker.sqlite_schema import empty_database
from csi.broker.store import Store
from csi.broker.tokens import TokenIssuer
from csi.broker.vault import Vault
from csi.broker.verifiers.known import known_verifiers
from csi.core.errors import InvalidInput, NotFound, Refused, SealedLocalError
from csi.core.files import write_atomic
from csi.core.secret import Secret

_SECRET_MODE, _PUBLIC_MODE, _DIRECTORY_MODE = 0o600, 0o644, 0o700
KEY_CHECK = ("master key check",)


@dataclass(frozen=True, slots=True)
class BrokerDirectory:
    """The files of one broker."""

    root: Path

    @property
    def master_key(self) -> Path:
        """The key that wraps all stored secrets. Whoever has it and the database has everything."""
        return self.root / "master.key"

    @property
    def next_master_key(self) -> Path:
        """The key that a rotation is going over to; gone when that has ended."""
        return self.root / "master.key.next"

    @property
    def kms(self) -> Path:
        """Which key of a KMS wraps the master key in its file; without this file none does."""
        return self.root / "kms.toml"

    @property
    def admin_token(self) -> Path:
        """The administrator's bearer token; without this file nobody administers over HTTP."""
        return self.root / "admin.token"

    @property
    def policy(self) -> Path:
        """The release policy."""
        return self.root / "policy.toml"

    @property
    def database(self) -> Path:
        """Records, wrapped secrets, audit log."""
        return self.root / "broker.sqlite"

    @property
    def conninfo(self) -> Path:
        """How to reach the PostgreSQL server that has the register in the place of `database`, in libpq's words."""
        return self.root / "database.conninfo"

    @property
    def write_ahead_log(self) -> Path:
        """The newest changes of the database; without the database itself it is not readable."""
        return self.root / "broker.sqlite-wal"

    @property
    def collateral(self) -> CollateralFolder:
        """What an operator imported for verifying evidence."""
        return CollateralFolder(self.root / "collateral")

    def certificate(self, name: str) -> Path:
        """The certificate `ca`, `server` or `token`."""
        return self.root / f"{name}.pem"

    def key(self, name: str) -> Path:
        """Its private key."""
        return self.root / f"{name}.key"

    def load_policy(self) -> ReleasePolicy:
        """The policy as the file says now."""
        try:
            if self.policy.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise Refused(f"{self.policy} can be changed by others than its owner: chmod go-w {self.policy}")
            return broker_policy.parse(self.policy.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise self._missing(self.policy) from error
        except UnicodeDecodeError as error:
            raise InvalidInput(str(self.policy), "not UTF-8") from error
        except OSError as error:
            raise Refused(f"{self.policy} can't be read: {error.strerror or error}") from error

    def load_pair(self, name: str) -> Pair:
        """A certificate with its key."""
        key = vault.read_private(self.key(name)).encode("ascii")
        try:
            return certificates.parse(self.certificate(name).read_bytes(), key, str(self.certificate(name)))
        except FileNotFoundError as error:
            raise self._missing(self.certificate(name)) from error

    def load_admin_token(self) -> Secret | None:
        """The administrator's token, None when there is no file."""
        if not self.admin_token.exists():
            return None
        token = vault.read_private(self.admin_token)
        if len(token) < 32:
            raise Refused(f"{self.admin_token}: a token of less than 32 characters can be guessed")
        return Secret(token.encode("ascii"))

    def open_store(self, environment: Mapping[str, str] = os.environ) -> Store:
        """The database; it must have been made by `init`, so that a wrong directory is not taken for an empty broker.

        Raises `Refused` for a master key that it was not written with.
        """
        if not self.conninfo.exists() and not self.database.exists():
            raise self._missing(self.database)
        place = ExitStack()
        place.callback(os.close, turns.together(self.root))
        try:
            store = Store(self.open_database(place.close), self.seals(environment))
        except BaseException:
            place.close()
            raise
        try:
            self.open_vault(store)
        except BaseException:
            store.close()
            raise
        return store

    def load_conninfo(self) -> Secret | None:
        """What the file says; None where the register is in SQLite."""
        return Secret(vault.read_private(self.conninfo).encode()) if self.conninfo.exists() else None

    def open_database(self, close: Callable[[], object] = lambda: None) -> Database:
        """Wherever it is. `close` is called when it is closed."""
        conninfo = self.load_conninfo()
        if conninfo is None:
            return Sqlite(self.database, close=close)
        from csi.broker.postgres import Postgres  # Its library is not worth its import time to the others.

        return Postgres(conninfo, close=close)

    def load_master_key(self, environment: Mapping[str, str]) -> Secret:
        """The master key from the environment, where an orchestrator may put it, else from its file."""
        given = environment.get(vault.MASTER_KEY_VARIABLE)
        if given is not None:
            return vault.decode_master_key(given, vault.MASTER_KEY_VARIABLE)
        return self.master_key_file(environment).load()

    def master_key_file(self, environment: Mapping[str, str], path: Path | None = None) -> MasterKeyFile:
        """The file with what wraps the key in it; `path` where it is another than the one in force."""
        return MasterKeyFile(path or self.master_key, load_wrapper(self.kms, environment))

    def seals(self, environment: Mapping[str, str]) -> Seals:
        """What rows and entries of the database are checked by."""
        return self.seals_of(self.load_master_key(environment))

    def seals_of(self, master: Secret) -> Seals:
        """The same under a given master key."""
        return Seals(
            vault=Vault(master),
            signer=seals.parse_signer(vault.read_private(self.key("audit")), str(self.key("audit"))),
        )

    def open_vault(self, store: Store) -> Vault:
        """The vault under the master key; raises `Refused` for a key that the database was not written with.

        Found out later, some secrets would be wrapped under the one key and some under the other.
        """
        if self.next_master_key.exists():
            raise Refused(f"a rotation of the master key has not ended: sealed-local broker rotate {self.root}")
        opened = store.vault
        opened.unwrap(store.key_check(opened.wrap(Secret(b""), *KEY_CHECK)), *KEY_CHECK)
        return opened

    def load_broker(self, environment: Mapping[str, str]) -> Broker:
        """Everything that a running broker needs."""
        signer, issuer = self.load_pair("token"), self.certificate("ca").read_bytes()
        chain = [signer.certificate, *x509.load_pem_x509_certificates(issuer)]
        policy, store = self.load_policy(), self.open_store(environment)
        try:
            store.check_integrity()
            master = self.open_vault(store)
        except SealedLocalError:
            store.close()
            raise
        return Broker(
            store=store,
            vault=master,
            issuer=TokenIssuer(signer.key, chain),
            policy=policy,
            verifiers=known_verifiers(self.collateral),
            liveness=Signs(store.here) if self.conninfo.exists() else Liveness(),
        )

    def _missing(self, path: Path) -> NotFound:
        return NotFound(f"{path} does not exist; `sealed-local broker init {self.root}` makes a broker's directory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What `init` found or made."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]


def initialise(
    directory: BrokerDirectory, hosts: Sequence[str], environment: Mapping[str, str], conninfo: Secret | None = None
) -> Made:
    """Make whatever of a broker's directory is missing. Killed at any moment and repeated, it ends complete.

    The database comes first and the token's key last, so that a database that is lost can be told from one that was
    never made: with an empty register, guests would be allowed to format volumes that hold data. `conninfo` is of a
    PostgreSQL database, for a new directory only.
    """
    directory.root.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    maker = _Maker()
    if conninfo is not None:
        _note_conninfo(directory, maker, conninfo)
    if directory.conninfo.exists():
        _make_tables(directory)
    else:
        _make_file(directory, maker)
    _make_keys_of_database(directory, maker, environment)
    maker.file(directory.admin_token, _SECRET_MODE, f"{secrets.token_urlsafe(32)}\n".encode)
    maker.file(directory.policy, _PUBLIC_MODE, POLICY_TEXT.encode)
    now = dt.datetime.now(dt.UTC)
    maker.pair(directory, "ca", lambda: certificates.authority(now))
    issuer = directory.load_pair("ca")
    maker.pair(directory, "server", lambda: certificates.server(issuer, hosts, now))
    maker.pair(directory, "token", lambda: certificates.token_signer(issuer, now))
    return Made(written=tuple(maker.written), kept=tuple(maker.kept))


def _note_conninfo(directory: BrokerDirectory, maker: "_Maker", conninfo: Secret) -> None:
    if directory.load_conninfo() not in (None, conninfo):
        raise Refused(f"{directory.conninfo} names another database; the register does not move by `init`")
    if directory.database.exists():
        raise Refused(
            f"{directory.database} is this broker's register, and would not be in use any more. To move it: `sealed-local "
            f"broker backup FILE`, write the connection into {directory.conninfo} (mode 0600), and "
            "`sealed-local broker restore FILE`"
        )
    maker.file(directory.conninfo, _SECRET_MODE, lambda: conninfo.reveal() + b"\n")


def _make_tables(directory: BrokerDirectory) -> None:
    from csi.broker import postgres

    conninfo = directory.load_conninfo()
    if conninfo is not None and not postgres.exists(conninfo):
        if directory.key("token").exists():
            raise _gone(f"the register in the database of {directory.conninfo}")
        postgres.make(conninfo)


def _make_file(directory: BrokerDirectory, maker: "_Maker") -> None:
    if not directory.database.exists() and (directory.key("token").exists() or directory.write_ahead_log.exists()):
        raise _gone(str(directory.database))
    # The files that SQLite puts beside it get its mode.
    maker.file(directory.database, _SECRET_MODE, empty_database)


def _gone(register: str) -> Refused:
    return Refused(
        f"{register} is gone. With an empty register in its place guests could format volumes that hold data: restore it "
        "from a backup, or make a new broker in another directory"
    )


def _make_keys_of_database(directory: BrokerDirectory, maker: "_Maker", environment: Mapping[str, str]) -> None:
    """Keys that a database was used with are never made anew: it could not be read, or not be checked, with others."""
    with closing(directory.open_database()) as database, database.reading() as rows:
        any_secrets, any_entries = holds_secrets(rows), holds_entries(rows)
    if vault.MASTER_KEY_VARIABLE not in environment:
        if not directory.master_key.exists() and any_secrets:
            raise Refused(f"{directory.master_key} is gone, and {directory.database} can't be read without it")
        file = directory.master_key_file(environment)
        maker.file(directory.master_key, _SECRET_MODE, lambda: file.text(Secret(os.urandom(32))))
    if not directory.key("audit").exists() and any_entries:
        raise Refused(f"{directory.key('audit')} is gone, and the audit log can't be checked without it: put it back")
    signer = seals.new_signer()
    maker.file(directory.key("audit"), _SECRET_MODE, lambda: seals.private_pem(signer))
    signer = seals.parse_signer(vault.read_private(directory.key("audit")), str(directory.key("audit")))
    maker.file(directory.certificate("audit"), _PUBLIC_MODE, lambda: seals.public_pem(signer))


def missing_hosts(directory: BrokerDirectory, hosts: Sequence[str]) -> list[str]:
    """Hosts that the server's certificate does not cover."""
    certificate = x509.load_pem_x509_certificate(directory.certificate("server").read_bytes())
    covered = certificates.covered_hosts(certificate)
    return [host for host in hosts if host not in covered]


class _Maker:
    def __init__(self) -> None:
        self.written: list[Path] = []
        self.kept: list[Path] = []

    def file(self, path: Path, mode: int, content: Callable[[], bytes]) -> None:
        if path.exists():
            self.kept.append(path)
            return
        write_atomic(path, content(), mode=mode, temporary=path.with_name(f".{path.name}.new"))
        self.written.append(path)

    def pair(self, directory: BrokerDirectory, name: str, make: Callable[[], Pair]) -> None:
        """The key is written last: until it is there, the pair counts as missing and is made again."""
        certificate, key = directory.certificate(name), directory.key(name)
        if key.exists():
            if not certificate.exists():
                raise Refused(f"{certificate} is gone, but {key} is there; put it back, or remove the key, too")
            self.kept += [certificate, key]
            return
        pair = make()
        for path, content, mode in (
            (certificate, pair.certificate_pem(), _PUBLIC_MODE),
            (key, pair.key_pem(), _SECRET_MODE),
        ):
            write_atomic(path, content, mode=mode, temporary=path.with_name(f".{path.name}.new"))
            self.written.append(path)
