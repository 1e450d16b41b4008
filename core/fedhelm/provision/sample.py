"""The sample ``project.yml`` that ``fedhelm provision`` offers to write."""

from __future__ import annotations

from typing import Final

__all__ = ["SAMPLE"]

SAMPLE: Final = """\
# A federation. `fedhelm provision -p project.yml` makes a signed start-up kit for each participant.
# Run it again after a change: root and certificates that are there are used again. --dry-run shows what would change.
api_version: 3
name: example_project
description: two hospitals train one model

# The directory that all servers share. It must be the same at each of them, and no other project's.
snapshot_persistor: /shared/fedhelm/example_project

# The image that participants may be started in: with it, each kit has a docker.sh, and resources/ a compose.yaml.
# docker_image: fedhelm:0.1

# How soon a dead primary is replaced: fast (3 s), default (5 s), or wan (25 s) for slow networks.
timing: default

# Several overseers share a PostgreSQL database; the password is not in this file.
# overseer:
#   lease_store: postgresql://USER@HOST:PORT/DATABASE?passfile=FILE

participants:
  # The name of an overseer or a server is the name that all others reach it by (DNS, or /etc/hosts). Where they reach
  # it by another name or an address, `host:` says it. A name becomes part of the certificate.
  - name: overseer
    type: overseer
    org: nvidia
    protocol: https
    api_root: /api/v1
    port: 8443

  # One server leads, the others stand by.
  - name: server1
    type: server
    org: nvidia
    fed_learn_port: 8002
    admin_port: 8003
  - name: server2
    type: server
    org: nvidia
    fed_learn_port: 9002
    admin_port: 9003

  # A site dials out; nobody dials it. enable_byoc: jobs may bring their own code to it.
  - name: site-1
    type: client
    org: hospital-a
    enable_byoc: true
    components:
      # What this site has to give to jobs.
      resource_manager:
        path: list
        args: {resources: {gpu: [0, 1]}}
  # own_key: it makes its key itself (fedhelm pki request), and no kit for it is made before its request is approved.
  - name: site-2
    type: client
    org: hospital-b
    enable_byoc: true
    # own_key: true

  # role: project_admin (everything), org_admin (the jobs and sites of its organisation), lead (submits, and manages
  # its own jobs), member (looks).
  - name: admin@nvidia.com
    type: admin
    org: nvidia
    role: project_admin

# Who may do what. Without this key every server and site gets the default policy, startup/authorization.json, which
# has the form of this key, and explains itself.
# authorization:
#   format_version: "1.0"
#   permissions:
#     project_admin: any
#     lead: {submit_job: any, view: ["o:submitter"], manage_job: "n:submitter", download_job: "n:submitter"}

# What every site does to results before they leave it, whatever a job asks: startup/privacy.json. A site's own
# local/privacy.json adds to it. Without this key there is none.
# privacy:
#   filters:
#     - {type: min_samples, samples: 50}
#     - {type: clip, norm: 1.0}
#   metrics: {only: [loss, accuracy]}
"""
