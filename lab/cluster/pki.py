"""Keys and certificates of a throw-away cluster, and the files that tell who its users are, in one folder.

Elliptic curves throughout: an RSA key costs the node's one processor more at each handshake.
"""

import datetime as dt
import secrets
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from lab.cluster.users import AUTHORITY, User, kubeconfig, kubeconfig_file, token_table

_DAY = dt.timedelta(days=1)


class Authority:
    """A certificate authority that lives as long as this object; its key is written nowhere."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("lab authority")
        usage = x509.BasicConstraints(ca=True, path_length=0)
        builder = _builder(self._name, self._name, self._key.public_key()).add_extension(usage, critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256())

    def issue(
        self,
        folder: Path,
        file: str,
        name: str,
        *,
        group: str = "",
        hosts: tuple[str, ...] = (),
        usage: ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    ) -> None:
        """Write `FILE.pem` and `FILE.key`. A host is a name or an IPv4 address."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name, group), self._name, key.public_key())
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        (folder / f"{file}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        _write_secret(folder / f"{file}.key", _pem(key))


def write(folder: Path, *, node: str, addresses: tuple[str, ...], users: tuple[User, ...], server: str) -> None:
    """Everything that the parts are started with: certificates, the tokens' table, a kubeconfig for each user."""
    folder.mkdir()
    authority = Authority()
    public = authority.certificate.public_bytes(serialization.Encoding.PEM)
    (folder / AUTHORITY).write_bytes(public)
    hosts = (*addresses, "kubernetes", "kubernetes.default", "kubernetes.default.svc")
    authority.issue(folder, "apiserver", "kube-apiserver", hosts=hosts)
    authority.issue(folder, "kubelet", node, hosts=(node, *addresses))
    authority.issue(
        folder, "kubelet-client", "kube-apiserver", group="system:masters", usage=ExtendedKeyUsageOID.CLIENT_AUTH
    )
    _write_secret(folder / "service-accounts.key", _pem(ec.generate_private_key(ec.SECP256R1())))
    tokens = {user: secrets.token_hex(16) for user in users}
    _write_secret(folder / "tokens.csv", token_table(tokens).encode())
    for user, token in tokens.items():
        config = kubeconfig(server=server, authority=folder / AUTHORITY, user=user.name, token=token)
        _write_secret(folder / kubeconfig_file(user), config.encode())


def _name(common: str, group: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if group:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(parts)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    # A day back: the node's clock may be a little behind the machine's.
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + 30 * _DAY)
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
