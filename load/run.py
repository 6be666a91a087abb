"""Runs the load test against `agentstream dev` in a directory of its own; takes the arguments of Locust.

python load/run.py --rate 1667 --minutes 1
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
_READY_WITHIN = 60.0


def main() -> int:
    """Returns Locust's exit code; 2 if the servers do not start."""
    with tempfile.TemporaryDirectory(prefix="agentstream-load-") as folder:
        log = Path(folder, "dev.log")
        manifests = str(HERE / "k8s.yaml")
        with log.open("wb") as output:
            dev = subprocess.Popen(
                [sys.executable, "-m", "agentstream_operator", "dev", manifests],
                cwd=folder,
                stdout=output,
                stderr=output,
            )
        try:
            until = time.monotonic() + _READY_WITHIN
            while "everything is ready" not in log.read_text():
                if dev.poll() is not None or time.monotonic() > until:
                    sys.stderr.write(log.read_text())
                    return 2
                time.sleep(0.1)
            locust = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless"]
            return subprocess.run(
                [*locust, "--only-summary", *sys.argv[1:]], cwd=folder, check=False
            ).returncode
        finally:
            dev.terminate()
            dev.wait()


if __name__ == "__main__":
    sys.exit(main())
