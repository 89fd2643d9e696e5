# raysim with the tested versions: the image of deploy/compose.yaml, deploy/rayjob.yaml and deploy/aws.yaml.
FROM python:3.11-slim-bookworm

# rsync and ssh for `ray up`, wget for KubeRay's probes
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 raysim

WORKDIR /home/raysim/raysim
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY raysim raysim
RUN pip install --no-cache-dir --constraint constraints.txt ".[server,s3]"
COPY jobs jobs

USER 1000
