"""OCI image archives without a registry and without an engine: one layer made of folders and files, and its description.

Format: the OCI image layout specification 1.0, in a tar file as `ctr images import` takes it.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Not part of what a build of the Dockerfile makes: its base has no manuals, and an engine lends the rest.
LEFT_OUT = ("dev", "proc", "sys", "run", "tmp", "usr/share/doc", "usr/share/man", "usr/share/locale")
_KIND = "application/vnd.oci.image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What an image holds: a whole root folder, or single programs by their paths in the image, and links."""

    root: Path | None = None
    programs: Mapping[str, Path] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a container of it starts."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    """What follows the entrypoint where a pod gives no arguments."""
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = "0:0"


def write(archive: Path, name: str, content: Content, start: Start) -> None:
    """Write an archive that is imported under `name`, e.g. `localhost/busybox:lab`."""
    layer = archive.with_name(archive.name + ".layer")
    try:
        _write_layer(layer, content)
        digest = _digest(layer)
        config = _json(_config(start, digest))
        manifest = _json(_manifest(config, digest, layer.stat().st_size))
        with tarfile.open(archive, "w") as tar:
            _add_bytes(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
            _add_bytes(tar, "index.json", _json(_index(name, manifest)))
            for blob in (config, manifest):
                _add_bytes(tar, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
            tar.add(layer, f"blobs/sha256/{digest}")
    finally:
        layer.unlink(missing_ok=True)


def _write_layer(layer: Path, content: Content) -> None:
    with tarfile.open(layer, "w") as tar:
        if content.root is not None:
            _add_tree(tar, content.root)
        for path, program in content.programs.items():
            tar.add(program, path, filter=_executable)
        for path, target in content.links.items():
            link = tarfile.TarInfo(path)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)


def _add_tree(tar: tarfile.TarFile, root: Path) -> None:
    """Files keep their times: compiled byte code is valid for one time of its source."""
    for folder, names, files in os.walk(root):
        inside = Path(folder).relative_to(root)
        names[:] = sorted(names)
        for name in (*names, *sorted(files)):
            tar.add(Path(folder, name), str(inside / name), recursive=False)
        # The folder itself stays, what lies in it does not.
        names[:] = [name for name in names if str(inside / name) not in LEFT_OUT]
        names[:] = [name for name in names if not Path(folder, name).is_symlink()]


def _executable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode, entry.uid, entry.gid, entry.uname, entry.gname = 0o755, 0, 0, "", ""
    return entry


def _config(start: Start, layer: str) -> dict[str, Any]:
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **start.env}
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": list(start.entrypoint),
            "Cmd": list(start.command),
            "Env": [f"{name}={value}" for name, value in env.items()],
            "User": start.user,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
    }


def _manifest(config: bytes, layer: str, size: int) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": f"{_KIND}.manifest.v1+json",
        "config": _descriptor("config.v1+json", hashlib.sha256(config).hexdigest(), len(config)),
        "layers": [_descriptor("layer.v1.tar", layer, size)],
    }


def _index(name: str, manifest: bytes) -> dict[str, Any]:
    described = _descriptor("manifest.v1+json", hashlib.sha256(manifest).hexdigest(), len(manifest))
    return {"schemaVersion": 2, "manifests": [{**described, "annotations": {"io.containerd.image.name": name}}]}


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": f"{_KIND}.{kind}", "digest": f"sha256:{digest}", "size": size}


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
