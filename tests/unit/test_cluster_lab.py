"""The pieces of the lab's cluster, without the cluster: keys, images, the words that parts are started with."""

import csv
import hashlib
import json
import re
import ssl
import stat
import tarfile
from pathlib import Path

import pytest
import yaml

from lab.cluster import api, archive, documented, parts, pki, programs, store, users
from lab.cluster.archive import Content, Start
from lab.node import REPOSITORY

MODULE = (REPOSITORY / "lab/cluster/go/go.mod").read_text()


@pytest.fixture
def layout(tmp_path: Path) -> parts.Layout:
    """Keys and files as the cluster is started with."""
    made = parts.Layout(programs=tmp_path / "bin", keys=tmp_path / "keys", files=tmp_path / "files")
    pki.write(made.keys, node=parts.NODE, addresses=("127.0.0.1",), users=parts.USERS, server=parts.SERVER)
    parts.write_files(made)
    every = Path("/program")
    programs.link(programs.Programs(kubernetes=every, provisioner=every, registrar=every, helm=every), made.programs)
    return made


def test_the_authority_vouches_for_the_server_and_only_under_its_names(layout: parts.Layout) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(layout.keys / "apiserver.pem", layout.keys / "apiserver.key")
    client = ssl.create_default_context(cafile=layout.keys / users.AUTHORITY)
    assert _handshake(client, server, "127.0.0.1") == "fine"
    assert "not valid for" in _handshake(client, server, "example.com")


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> str:
    """Both sides of TLS in memory; returns what the client says to the server's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=host)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
    return "fine"


def test_keys_and_tokens_are_their_owners_alone(layout: parts.Layout) -> None:
    secret = [path for path in layout.keys.iterdir() if path.suffix != ".pem"]
    assert {path.suffix for path in secret} == {".key", ".csv", ".kubeconfig"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


def test_each_user_has_a_token_of_its_own_which_the_table_tells_the_server(layout: parts.Layout) -> None:
    rows = {row[1]: row for row in csv.reader((layout.keys / "tokens.csv").read_text().splitlines())}
    assert rows["system:node:lab-node"][3] == "system:nodes"
    for user in parts.USERS:
        config = yaml.safe_load(Path(layout.kubeconfig(user)).read_text())
        assert config["users"] == [{"name": user.name, "user": {"token": rows[user.name][0]}}]
    assert len({row[0] for row in rows.values()}) == len(parts.USERS)


def test_a_part_is_started_with_files_that_are_there(layout: parts.Layout) -> None:
    for argv in (parts.apiserver(layout), parts.controllers(layout), parts.scheduler(layout), parts.kubelet(layout),
                 parts.containerd(layout)):  # fmt: skip
        for path in re.findall(rf"{layout.keys.parent}[^\s,]*", " ".join(argv)):
            assert Path(path).exists() or Path(path).is_symlink(), path
    for path in re.findall(rf'"({layout.keys.parent}[^"]*)"', (layout.files / "containerd.toml").read_text()):
        assert Path(path).exists(), path
    kubelet = json.loads((layout.files / "kubelet.json").read_text())
    assert Path(kubelet["tlsPrivateKeyFile"]).exists()


def test_an_archive_is_what_the_image_layout_asks_for(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/file").write_text("kept")
    (root / "proc").mkdir()
    (root / "proc/lent").touch()
    path = tmp_path / "image.tar"
    archive.write(path, "localhost/x:1", Content(root=root), Start(entrypoint=("/x",), env={"A": "b"}, user="1:2"))
    with tarfile.open(path) as tar:
        blobs = {name: _read(tar, name) for name in tar.getnames()}
        index = json.loads(blobs["index.json"])
        (described,) = index["manifests"]
        assert described["annotations"] == {"io.containerd.image.name": "localhost/x:1"}
        manifest = json.loads(_blob(blobs, described))
        config = json.loads(_blob(blobs, manifest["config"]))
        assert config["config"]["Entrypoint"] == ["/x"]
        assert config["config"]["User"] == "1:2"
        assert "A=b" in config["config"]["Env"]
        (layer,) = manifest["layers"]
        assert config["rootfs"]["diff_ids"] == [layer["digest"]]
        (tmp_path / "layer.tar").write_bytes(_blob(blobs, layer))
    with tarfile.open(tmp_path / "layer.tar") as tar:
        assert sorted(tar.getnames()) == ["etc", "etc/file", "proc"]


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def _blob(blobs: dict[str, bytes], described: dict[str, object]) -> bytes:
    """A blob by its description, which must be true."""
    digest = str(described["digest"]).removeprefix("sha256:")
    blob = blobs[f"blobs/sha256/{digest}"]
    assert hashlib.sha256(blob).hexdigest() == digest
    assert len(blob) == described["size"]
    return blob


def test_a_layer_keeps_the_times_that_byte_code_is_valid_for(tmp_path: Path) -> None:
    source = tmp_path / "root/module.py"
    source.parent.mkdir()
    source.touch()
    archive.write(tmp_path / "image.tar", "x", Content(root=source.parent), Start(entrypoint=()))
    with tarfile.open(tmp_path / "image.tar") as tar:
        layer = max(tar.getmembers(), key=lambda member: member.size)
        with tarfile.open(fileobj=tar.extractfile(layer)) as inner:
            assert int(inner.getmember("module.py").mtime) == int(source.stat().st_mtime)


def test_a_program_in_an_image_is_roots_and_may_be_run(tmp_path: Path) -> None:
    program = tmp_path / "program-0123456789abcdef-x86_64"
    program.write_text("")
    archive.write(tmp_path / "i.tar", "x", Content(programs={"a/p": program}, links={"a/q": "p"}), Start(entrypoint=()))
    with tarfile.open(tmp_path / "i.tar") as tar:
        layer = max(tar.getmembers(), key=lambda member: member.size)
        with tarfile.open(fileobj=tar.extractfile(layer)) as inner:
            entry = inner.getmember("a/p")
            assert (entry.mode, entry.uid, entry.gid) == (0o755, 0, 0)
            assert inner.getmember("a/q").linkname == "p"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (["status", "conditions", {"type": "Ready"}, "status"], "True"),
        (["status", "conditions", 0, "type"], "Pressure"),
        (["status", "conditions", {"type": "Other"}, "status"], None),
        (["spec", "nodeName"], None),
        (["status", "conditions", 7], None),
    ],
)
def test_a_field_is_found_by_its_path_or_is_none(path: list[object], found: object) -> None:
    conditions = [{"type": "Pressure", "status": "False"}, {"type": "Ready", "status": "True", "reason": "x"}]
    assert api.field_of({"status": {"conditions": conditions}}, path) == found


def test_what_the_build_prints_is_read_back() -> None:
    assert programs.parse("kubernetes /a b/k\nregistrar /r\n") == {
        "kubernetes": Path("/a b/k"),
        "registrar": Path("/r"),
    }


def test_commands_of_a_page_are_read_without_their_answers() -> None:
    page = "# A\n\n## B\n\ntext\n\n```console\n$ one \\\n    two\nanswer\n$ three\n```\n\n```console\n$ four\n```\n"
    assert documented.commands(page, "## B") == ["one two", "three"]
    with pytest.raises(ValueError, match="no console block below '## C'"):
        documented.commands(page, "## C")


@pytest.mark.parametrize(("page", "heading"), [("install.md", "## Install")])
def test_the_pages_install_with_helm_the_image_that_the_cluster_has(page: str, heading: str) -> None:
    text = (REPOSITORY / "docs" / page).read_text()
    (install,) = (line for line in documented.commands(text, heading) if line.startswith("helm install"))
    assert f"images.node.repository={store.DOCUMENTED}" in install


def test_the_cluster_runs_the_sidecar_versions_that_the_chart_names() -> None:
    """What is tested is what is shipped."""
    values = yaml.safe_load((store.CHART / "values.yaml").read_text())["images"]
    built = dict(re.findall(r"github.com/kubernetes-csi/external-(\w+)/v\d+ (v[\d.]+)", MODULE))
    assert values["provisioner"]["tag"] == built["provisioner"]


def test_staging_modules_are_of_the_version_of_kubernetes() -> None:
    (minor,) = re.findall(r"^\tk8s.io/kubernetes v1(\.\d+\.\d+)$", MODULE, re.MULTILINE)
    replaced = re.findall(r"^\t(\S+) => (\S+) (\S+)$", MODULE, re.MULTILINE)
    assert len(replaced) == 31
    assert all(new == old and version == f"v0{minor}" for old, new, version in replaced)
