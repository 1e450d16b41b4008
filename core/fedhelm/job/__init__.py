"""Jobs: what a folder says (`load_job`), how it travels (`bundle`), and how it lives (`lifecycle`)."""

from __future__ import annotations

from fedhelm.job.lifecycle import JobEvent, JobStatus, transition
from fedhelm.job.loading import Job, load_bundle, load_job
from fedhelm.job.model import JobConfig
from fedhelm.job.rules import parse_config

__all__ = ["Job", "JobConfig", "JobEvent", "JobStatus", "load_bundle", "load_job", "parse_config", "transition"]
