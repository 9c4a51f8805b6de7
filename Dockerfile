# tusd_py in a container: docker build -t tusd-py .
# compose.yaml beside this file is a whole installation. Nothing secret is in the image: the configuration
# comes from TUSD_… variables, or from a file that is mounted (serve --config FILE).

# The version of Python that the tests run on.
ARG PYTHON=3.11

FROM node:22-slim AS page
WORKDIR /build/frontend
COPY frontend/package.json frontend/package-lock.json ./
RUN npm ci --omit=dev --no-audit --no-fund
COPY frontend/ ./
RUN npm run build

FROM python:${PYTHON}-slim AS program
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY migrations/ migrations/
COPY tusd_py/ tusd_py/
COPY --from=page /build/tusd_py/web/assets/ tusd_py/web/assets/
RUN python -m venv /opt/tusd_py
RUN /opt/tusd_py/bin/python -m pip install --no-cache-dir --quiet -c constraints.txt .

FROM python:${PYTHON}-slim
# Numbers that stay the same, for the owners of files in volumes.
RUN groupadd --system --gid 10001 tusd_py \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/tusd_py tusd_py \
    && mkdir -p /var/lib/tusd_py \
    && chown 10001:10001 /var/lib/tusd_py
COPY --from=program /opt/tusd_py /opt/tusd_py
ENV PATH=/opt/tusd_py/bin:$PATH \
    TUSD_DATA_DIR=/var/lib/tusd_py \
    TUSD_SERVER__HOST=0.0.0.0 \
    TUSD_LOGGING__FORMAT=json
USER 10001:10001
WORKDIR /var/lib/tusd_py
# Uploads that are on their way lie here, and without an S3 store those that have arrived too.
VOLUME /var/lib/tusd_py
EXPOSE 1080
# A drain ends every body, keeps what has arrived and answers. It takes up to 40 s with the default
# server.shutdown_timeout: give it more than the 10 s of `docker stop` (docker stop --time 60).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:1081/readyz', timeout=4)"]
ENTRYPOINT ["tusd-py"]
CMD ["serve"]
