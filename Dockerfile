# The service in an image without shell, package manager or compiler.
#
# Base: distroless "cc" (glibc, CA certificates, time zones, user 65532) and a Python of python-build-standalone, which
# brings its own OpenSSL and SQLite. So what can need a security fix is short: glibc, that Python, and requirements.txt.
# Images are pinned by digest; .github/dependabot.yml moves them. uv checks its Python against hashes that it carries.

FROM gcr.io/distroless/cc-debian13:nonroot@sha256:e792ab3d241a468a4fd7519ddbbebe66b49b5f365771716ea688ad40b6c6f1c2 AS base
FROM ghcr.io/astral-sh/uv:0.13.0@sha256:cdc6093146eb3ff6a40107b38f008b789e050e77ad87865e381d9917da55a168 AS uv

FROM debian:trixie-slim@sha256:a29215f6a35e51e22adffa17f89e9d2ef06214e64a2bad10d765c46aea49f11f AS build
COPY --from=uv /uv /usr/local/bin/uv
COPY --from=base /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    UV_NO_CACHE=1 \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1 \
    UV_PYTHON=3.13 \
    UV_PYTHON_PREFERENCE=only-managed \
    UV_PYTHON_INSTALL_DIR=/opt/python
WORKDIR /src

# The interpreter, without what a server never imports.
# hadolint ignore=DL3003
RUN uv python install \
    && cd /opt/python/cpython-*/ \
    && rm -rf include share lib/tcl* lib/tk* lib/itcl* lib/thread* lib/pkgconfig \
        lib/python3*/idlelib lib/python3*/tkinter lib/python3*/turtledemo lib/python3*/ensurepip \
        lib/python3*/site-packages/pip lib/python3*/site-packages/pip-* bin/pip* bin/idle* bin/2to3* bin/pydoc*

# What it depends on: only what requirements.txt has the hash of.
COPY requirements.txt ./
RUN uv venv /opt/broker \
    && uv pip install --python /opt/broker/bin/python --require-hashes -r requirements.txt

# The service's own wheel (with the client's wheel for /simple/ inside), without the emulated GitHub of `broker demo`.
COPY . ./
RUN uv build --wheel --package github-token-broker --out-dir /dist \
        --build-constraints .ci/build-requirements.txt --require-hashes \
    && uv pip install --python /opt/broker/bin/python --no-deps --no-index /dist/github_token_broker-*.whl \
    && rm -rf /opt/broker/lib/python3*/site-packages/broker/sandbox \
    && mkdir -p /data

FROM base
LABEL org.opencontainers.image.title="github-token-broker" \
    org.opencontainers.image.description="Short-lived, read-only, repository-scoped GitHub tokens from your own GitHub App" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/python /opt/python
COPY --from=build /opt/broker /opt/broker
# Where SQLite's file goes if nothing else is said: docker run --read-only -v broker:/var/lib/broker ...
COPY --from=build --chown=65532:65532 /data /var/lib/broker
# That Python's OpenSSL looks for certificates elsewhere. Loopback would not be reached from outside of the container.
ENV PATH=/opt/broker/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    BROKER_HOST=0.0.0.0
USER 65532:65532
WORKDIR /var/lib/broker
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 CMD ["/opt/broker/bin/broker", "healthcheck"]
ENTRYPOINT ["/opt/broker/bin/broker"]
CMD ["serve"]
