"""Quantize the model of a job with the package it names."""

import json
import sys
from importlib import import_module
from pathlib import Path

from quant.methods.peers.worker.job import Job

job = Job(Path(sys.argv[1]))
job.write(import_module(f"quant.methods.peers.worker.{job.package}").quantize(job))
print(json.dumps({"done": job.package}))
