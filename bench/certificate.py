"""A self-signed certificate, for the benchmarks and the tests.

Owns how openssl is asked for it. Knows nothing of who shows it to whom.
"""

from __future__ import annotations

import subprocess
from pathlib import Path


def certificate(folder: Path, name: str = "IP:127.0.0.1") -> tuple[Path, Path]:
    """Make a certificate for `name`, and return its file and that of its key."""
    path, key = folder / "cert.pem", folder / "key.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]
    names = ["-subj", "/CN=localhost", "-addext", f"subjectAltName={name}"]
    command = ["openssl", "req", "-x509", "-days", "2", *kind, *names, "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path, key
