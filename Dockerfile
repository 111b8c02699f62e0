# One image for every role: run, receive, work, web, aggregate. torch's wheel carries CUDA; without a GPU it
# runs on the CPU.
FROM python:3.12-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/dicomnode

# torch comes first and alone: the largest layer, and no dependency can draw in another build of it.
COPY constraints.txt ./
RUN pip install -c constraints.txt torch

COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY dicomnode dicomnode
RUN pip install -c constraints.txt ".[web,aggregator,postgresql,nnunet,training]" && pip check

# Relative data folders begin in /data; mount a volume there and, if wanted, a configuration.
RUN useradd --uid 10001 --create-home dicomnode && install -d -o dicomnode /data
USER dicomnode
WORKDIR /data
VOLUME /data
EXPOSE 11112 8080 8443

# The node's own health page. The aggregator's service in compose.yaml asks its own address instead.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=5)"]

ENTRYPOINT ["dicomnode"]
CMD ["run"]
