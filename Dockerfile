# The one image of every command: the operator, the chart's hooks, the command line.
#
#     docker build -t agentstream:0.1.0 .
#
# It runs as a user without a name, on a root file system that may be read-only, and holds no source tree and no
# installer.
ARG PYTHON=python:3.13-slim

# what others wrote: it changes seldom, and is a layer of its own
FROM ${PYTHON} AS dependencies
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.9
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PROJECT_ENVIRONMENT=/opt/venv UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY pyproject.toml uv.lock ./
COPY sdk/pyproject.toml sdk/
COPY operator/pyproject.toml operator/
# Of the Kubernetes client only session and credentials are used: what is generated for each kind, twice, goes, which
# is two thirds of all. Its packages stay, since others import them.
RUN uv sync --frozen --no-default-groups --package agentstream-operator --no-install-workspace \
    && cd /opt/venv/lib/python3*/site-packages/kubernetes \
    && find client/api client/models aio/client/api aio/client/models -type f ! -name '__init__*' -delete

FROM dependencies AS build
COPY sdk sdk
COPY operator operator
RUN uv sync --frozen --no-default-groups --package agentstream-operator --no-editable \
    && mkdir /own && cd /opt/venv && cp -r --parents bin/agentstream lib/python3*/site-packages/agentstream* /own

FROM ${PYTHON}
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=build /own /opt/venv
# Bytecode is there already, and could not be written. The user has no entry in /etc/passwd to look these up in.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp USER=agentstream PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["agentstream"]
