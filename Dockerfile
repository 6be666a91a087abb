# The one image of every command: the operator, the chart's hooks, the command line.
#
#     docker build -t agentstream:0.1.0 .
#
# It runs as a user without a name, on a root file system that may be read-only, and holds no source tree and no
# installer. What it is built from has hashes, in uv.lock and below, but for the base image, whose tag moves with its
# fixes; a build that is to be repeated names a digest: --build-arg PYTHON=python:3.13-slim@sha256:…
ARG PYTHON=python:3.13-slim

# what others wrote: it changes seldom, and is a layer of its own
FROM ${PYTHON} AS dependencies
# the wheels for x86-64 and for ARM64
RUN printf '%s\n' 'uv==0.13.9 \' \
    ' --hash=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19 \' \
    ' --hash=sha256:ecb6028d79dc96fbeafffe5c8af62a7099487ebc05a701e76714eebcffd06375 \' \
    ' --hash=sha256:5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe' >/tmp/uv.txt \
    && pip install --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes -r /tmp/uv.txt
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PROJECT_ENVIRONMENT=/opt/venv UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY pyproject.toml uv.lock ./
COPY sdk/pyproject.toml sdk/
COPY operator/pyproject.toml operator/
# Of the Kubernetes client only session and credentials are used: what is generated for each kind, twice, goes, which
# is two thirds of all. Its packages stay, since others import them.
RUN uv sync --frozen --no-default-groups --package agentstream-operator --extra kubernetes --no-install-workspace \
    && cd /opt/venv/lib/python3*/site-packages/kubernetes \
    && find client/api client/models aio/client/api aio/client/models -type f ! -name '__init__*' -delete

FROM dependencies AS build
COPY sdk sdk
COPY operator operator
RUN uv sync --frozen --no-default-groups --package agentstream-operator --extra kubernetes --no-editable \
    && mkdir /own && cd /opt/venv && cp -r --parents bin/agentstream lib/python3*/site-packages/agentstream* /own

FROM ${PYTHON}
RUN cd /usr/local && rm -rf bin/pip* lib/python3*/ensurepip lib/python3*/site-packages/pip*
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=build /own /opt/venv
# Bytecode is there already, and could not be written. The user has no entry in /etc/passwd to look these up in.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp USER=agentstream PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["agentstream"]
