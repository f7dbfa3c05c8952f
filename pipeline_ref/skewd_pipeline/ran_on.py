"""What a run's figures depend on that is not in its settings: the host, and the versions of what took part."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "skewd", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "grpcio", "aiohttp", "pyzmq",
    "confluent-kafka", "pyaeron", "magika", "onnxruntime",
)  # fmt: skip


def host() -> dict[str, str | int | float]:
    """What the figures depend on that is not in the settings."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "load_1min_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that take part."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
