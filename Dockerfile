# The engine in an image: a virtual environment from the hash-locked requirements, and nothing that builds.
# Works with BuildKit and without. How to use it: docs/deploy.md.
ARG PYTHON_IMAGE=python:3.13-slim


FROM ${PYTHON_IMAGE} AS builder

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

# Dependencies first: they change less often than our code. Wheels only, so that no compiler is needed, and a platform
# that has none of a package says so. The environment gets no pip of its own: the builder's installs into it.
COPY requirements/ requirements/
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/aism \
 && /build/bin/pip --python /opt/aism/bin/python install --only-binary=:all: --require-hashes -r requirements/run.lock

# What builds our wheel is locked too: its part of the developers' lock. A dependency that this list lacks fails here.
RUN awk '/^[a-z]/ { keep = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } keep' \
      requirements/dev.lock > build.lock \
 && /build/bin/pip install --only-binary=:all: --require-hashes -r build.lock

COPY pyproject.toml README.md ./
COPY config/ config/
COPY aism_engine/ aism_engine/
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
 && /build/bin/pip --python /opt/aism/bin/python install --no-deps /dist/*.whl

# Modes are set here, whatever the umask of the checkout was.
RUN install -D -m 644 config/engine.toml /etc/aism/engine.toml


FROM ${PYTHON_IMAGE} AS runtime

ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="AISM Engine" \
      org.opencontainers.image.description="Agent Intent State Machine: one engine measures, decides and records over Redis" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# A number that is fixed, so that a cluster's policy can name it; no home, no shell. The directory is for an archive: a
# new volume that is mounted there takes its owner over, and would be root's otherwise.
RUN groupadd --gid 10001 aism \
 && useradd --uid 10001 --gid aism --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin aism \
 && install -d -o aism -g aism -m 700 /var/lib/aism-engine

COPY --from=builder /etc/aism /etc/aism
COPY --from=builder /opt/aism /opt/aism

# Nothing is written to disk: run it with a read-only root. Inside a container loopback is nobody, hence the address.
# An answer of DNS that comes after redis.connect_timeout is of no use, and who waits 5 s for it, as the C library does by
# itself, comes back to Redis so much later.
ENV PATH=/opt/aism/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    RES_OPTIONS="timeout:1 attempts:2" \
    AISM_HTTP__HOST=0.0.0.0
USER 10001:10001
WORKDIR /
EXPOSE 9464
STOPSIGNAL SIGTERM

# Live, not ready: who acts on this by a restart (Swarm does) must not restart the engine because Redis is away.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
  CMD ["aism-engine", "health", "--live", "--config", "/etc/aism/engine.toml"]

ENTRYPOINT ["aism-engine"]
CMD ["run", "--config", "/etc/aism/engine.toml"]
