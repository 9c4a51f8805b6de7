"""The AWS CLI, with which the worker is compared: installed on demand, and told to send as the worker does.

Each version gets an environment of its own in `.venv`, because they pin botocore.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from measure_transfers import Transferred

from tests.support.s3_servers import ACCESS_KEY, REGION, SECRET_KEY, S3Server

REQUIREMENTS: Final = {"crc64nvme": "awscli>=1.46", "auto": "awscli==1.36.40"}
"""Which CLI does what a worker does with this `storage.s3.checksum`."""
INSTALL_SECONDS: Final = 300
VENV: Final = Path(__file__).resolve().parents[1] / ".venv"


def install(checksum: str) -> Path:
    """Return the program of the CLI that sends this checksum, installed if it is not there."""
    home = VENV / f"awscli-{checksum}"
    program = home / "bin" / "aws"
    if not program.exists():
        print(f"bench: installing {REQUIREMENTS[checksum]}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", home], check=True, timeout=INSTALL_SECONDS)
        # Old versions import what setuptools 80 no longer has.
        requirements = [REQUIREMENTS[checksum], "setuptools<80"]
        subprocess.run([home / "bin" / "pip", "-q", "install", *requirements], check=True, timeout=INSTALL_SECONDS)
    return program


def environment(folder: Path, *, part_mib: int, concurrency: int) -> dict[str, str]:
    """Return the environment in which the CLI sends parts of this size, so many at once."""
    config = folder / "aws.config"
    config.write_text(
        f"[default]\nregion = {REGION}\ns3 =\n  max_concurrent_requests = {concurrency}\n"
        f"  multipart_threshold = {part_mib}MB\n  multipart_chunksize = {part_mib}MB\n  addressing_style = path\n"
    )
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    return {**os.environ, **keys, "AWS_CONFIG_FILE": str(config), "AWS_EC2_METADATA_DISABLED": "true"}


def copy(program: Path, path: Path, s3: S3Server, key: str, env: dict[str, str]) -> Transferred:
    """Copy a file to the store with `aws s3 cp`."""
    options = ["--only-show-errors", "--endpoint-url", s3.endpoint_url]
    command = [str(program), "s3", "cp", *options, str(path), f"s3://{s3.bucket}/{key}"]
    started = time.monotonic()
    process = subprocess.Popen(command, env=env)
    _, status, usage = os.wait4(process.pid, 0)
    took = time.monotonic() - started
    if os.waitstatus_to_exitcode(status):
        raise SystemExit("bench: aws s3 cp failed")
    return Transferred(took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
