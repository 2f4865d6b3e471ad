# One target a program: docker build --target node|guest|broker|cluster . (and what guest images are made of)
# Every stage lies on one Debian release, so that a package built for its Python runs on it. Each program's image has only its
# own packages and of our code what its own imports reach (scripts/reached.py): the node's has no cryptography and no
# cryptsetup, because the node holds no keys.
ARG DEBIAN=debian:12.12-slim

FROM ${DEBIAN} AS python
# Byte code is compiled in the build: without it a start takes four times as long.
ENV PYTHONDONTWRITEBYTECODE=1 PATH=/opt/sealed-local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/build.txt /src/requirements/build.txt
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --disable-pip-version-check --no-cache-dir --require-hashes -r /src/requirements/build.txt
COPY pyproject.toml README.md /src/
COPY scripts/reached.py /src/scripts/reached.py
COPY csi /src/csi
RUN /opt/build/bin/pip wheel --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir /wheel /src

FROM build AS node-build
COPY requirements/node.txt /src/requirements/node.txt
RUN python3 -m venv /opt/sealed-local \
    && pip install --disable-pip-version-check --no-cache-dir --no-compile --require-hashes -r /src/requirements/node.txt \
    && pip install --disable-pip-version-check --no-cache-dir --no-compile --no-index --no-deps /wheel/*.whl \
    && python /src/scripts/reached.py /opt/sealed-local/lib/python3*/site-packages node \
    && pip uninstall -y pip setuptools \
    && python -m compileall -q -o 2 /opt/sealed-local/lib

FROM build AS guest-build
COPY requirements/guest.txt /src/requirements/guest.txt
RUN python3 -m venv /opt/sealed-local \
    && pip install --disable-pip-version-check --no-cache-dir --require-hashes -r /src/requirements/guest.txt \
    && pip install --disable-pip-version-check --no-cache-dir --no-index --no-deps /wheel/*.whl \
    && python /src/scripts/reached.py /opt/sealed-local/lib/python3*/site-packages guest \
    && pip uninstall -y pip setuptools \
    && python -m compileall -q /opt/sealed-local/lib

FROM build AS broker-build
COPY requirements/broker.txt /src/requirements/broker.txt
RUN python3 -m venv /opt/sealed-local \
    && pip install --disable-pip-version-check --no-cache-dir --require-hashes -r /src/requirements/broker.txt \
    && pip install --disable-pip-version-check --no-cache-dir --no-index --no-deps /wheel/*.whl \
    && python /src/scripts/reached.py /opt/sealed-local/lib/python3*/site-packages broker \
    && pip uninstall -y pip setuptools \
    && python -m compileall -q /opt/sealed-local/lib

FROM build AS cluster-build
COPY requirements/cluster.txt /src/requirements/cluster.txt
RUN python3 -m venv /opt/sealed-local \
    && pip install --disable-pip-version-check --no-cache-dir --require-hashes -r /src/requirements/cluster.txt \
    && pip install --disable-pip-version-check --no-cache-dir --no-index --no-deps /wheel/*.whl \
    && python /src/scripts/reached.py /opt/sealed-local/lib/python3*/site-packages cluster \
    && pip uninstall -y pip setuptools \
    && python -m compileall -q /opt/sealed-local/lib

# The node plugin. It needs privileges, the host's /dev, and the other mounts that docs/node.md lists.
FROM python AS node
RUN apt-get update \
    && apt-get install -y --no-install-recommends lvm2 e2fsprogs xfsprogs mount util-linux \
    && rm -rf /var/lib/apt/lists/*
COPY --from=node-build /opt/sealed-local /opt/sealed-local
# Every node pays for its memory: without docstrings and columns of tracebacks, which nothing reads there, it is two megabytes
# less.
ENV PYTHONOPTIMIZE=2 PYTHONNODEBUGRANGES=1
RUN PYTHONDONTWRITEBYTECODE='' python -c "import csi.node.main"
ENTRYPOINT ["sealed-local", "node"]

# For a container with a raw block device (`volumeMode: Block`) inside a confidential guest: `guest run ... -- COMMAND`.
FROM python AS guest
RUN apt-get update \
    && apt-get install -y --no-install-recommends cryptsetup-bin dmsetup e2fsprogs xfsprogs mount util-linux libudev1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=guest-build /opt/sealed-local /opt/sealed-local
ENTRYPOINT ["sealed-local", "guest"]

# What goes into the root filesystem of a Kata guest: `guest` with its own Python, tools and libraries, and what puts it there.
# docker build --target guest-bundle --output bundle . (the folder /bundle); deploy/guest-image/README.md says what to do with it.
FROM guest AS guest-bundle
RUN apt-get update \
    && apt-get install -y --no-install-recommends patchelf \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/guest-image /src/guest-image
RUN /src/guest-image/make-bundle /bundle

# A root filesystem with the bundle and a kernel that has configfs-tsm (6.12; Debian 12's own has none). kata-agent is not in it.
FROM ${DEBIAN} AS guest-rootfs
COPY deploy/guest-image/fetch-kernel /tmp/
RUN /tmp/fetch-kernel && rm /tmp/fetch-kernel
COPY --from=guest-bundle /bundle /tmp/bundle
RUN /tmp/bundle/add-to-rootfs / && rm -rf /tmp/bundle

# The tenant's broker. Its folder is a volume of the tenant's; `sealed-local broker init` fills it.
FROM python AS broker
COPY --from=broker-build /opt/sealed-local /opt/sealed-local
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/sealed-local
USER 65532:65532
EXPOSE 8443
ENTRYPOINT ["sealed-local", "broker"]
CMD ["serve", "/var/lib/sealed-local", "--listen", "0.0.0.0:8443"]

# The cluster helper. It talks to the API server and to the node plugins' pages, and needs nothing of its node.
FROM python AS cluster
COPY --from=cluster-build /opt/sealed-local /opt/sealed-local
USER 65532:65532
ENTRYPOINT ["sealed-local", "cluster"]
