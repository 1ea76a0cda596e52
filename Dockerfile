# Image of the engine: a virtual environment from the hash-locked requirements, without build tools.
# Builds with and without BuildKit. Usage: docs/deploy.md.
ARG PYTHON_IMAGE=python:3.13-slim


FROM ${PYTHON_IMAGE} AS builder

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

# Dependencies come first, because they change less often than our code. Only wheels are installed: no compiler is
# needed, and the build fails where a package has no wheel. The builder's pip installs into the final environment, which
# has no pip itself.
COPY requirements/ requirements/
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/aism \
 && /build/bin/pip --python /opt/aism/bin/python install --only-binary=:all: --require-hashes -r requirements/run.lock

# The packages that build our wheel are locked as well, in dev.lock. The build fails if one is missing from this list.
RUN awk '/^[a-z]/ { keep = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } keep' \
      requirements/dev.lock > build.lock \
 && /build/bin/pip install --only-binary=:all: --require-hashes -r build.lock

COPY pyproject.toml README.md LICENSE ./
COPY config/ config/
COPY aism_engine/ aism_engine/
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
 && /build/bin/pip --python /opt/aism/bin/python install --no-deps /dist/*.whl

# `install` sets the file mode, so that it does not depend on the umask of the checkout.
RUN install -D -m 644 config/engine.toml /etc/aism/engine.toml


FROM ${PYTHON_IMAGE} AS runtime

ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="AISM Engine" \
      org.opencontainers.image.description="Agent Intent State Machine: one engine measures, decides and records over Redis" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# The user id is fixed, so that the policy of a cluster can refer to it. The directory is for an archive: a new volume
# that is mounted there gets the owner of the directory. Without the directory it would belong to root.
RUN groupadd --gid 10001 aism \
 && useradd --uid 10001 --gid aism --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin aism \
 && install -d -o aism -g aism -m 700 /var/lib/aism-engine

COPY --from=builder /etc/aism /etc/aism
COPY --from=builder /opt/aism /opt/aism

# Without an archive the engine writes no files, so the root file system can be read-only. It listens on all addresses,
# because nothing outside a container can reach its loopback. A DNS lookup without a reply ends after 2 s, the default of
# redis.connect_timeout. The default of the C library, 5 s per attempt, would delay each reconnection to Redis.
ENV PATH=/opt/aism/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    RES_OPTIONS="timeout:1 attempts:2" \
    AISM_HTTP__HOST=0.0.0.0
USER 10001:10001
WORKDIR /
EXPOSE 9464
STOPSIGNAL SIGTERM

# This checks liveness, not readiness: Swarm restarts unhealthy containers, and a restart does not help if Redis is down.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
  CMD ["aism-engine", "health", "--live", "--config", "/etc/aism/engine.toml"]

ENTRYPOINT ["aism-engine"]
CMD ["run", "--config", "/etc/aism/engine.toml"]
