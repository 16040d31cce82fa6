"""The tools of the field on the credentials of one small grid, and our verdict beside theirs."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from security import certificates
from security.credentials import Credential
from security.errors import ValidationError
from security.testing import TestGrid
from security.validation import ValidationPolicy, validate_client_chain

GLOBUS_JUDGE = Path(__file__).with_name("globus_judge.py")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
needs_globus = pytest.mark.skipif(shutil.which("grid-proxy-init") is None, reason="globus-proxy-utils is not installed")
needs_voms = pytest.mark.skipif(shutil.which("voms-proxy-info") is None, reason="voms-clients is not installed")
needs_globus_library = pytest.mark.skipif(
    ctypes.util.find_library("globus_gsi_credential") is None, reason="libglobus-gsi-credential1 is not installed"
)


class World:
    """A grid at the present time, since the tools read the clock."""

    def __init__(self, folder: Path, key_type: str) -> None:
        self.grid = TestGrid(folder / "grid", datetime.now(UTC).replace(microsecond=0), key_type=key_type)
        self.folder = folder

    def run(self, *command: str, proxy: Path | None = None, user: tuple[Path, Path] | None = None) -> str:
        """Output of a tool, with its exit code as the first word. X509_USER_CERT wins over a proxy: give one."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "X509_CERT_DIR": str(self.grid.trust_directory),
        }
        if proxy is not None:
            environment["X509_USER_PROXY"] = str(proxy)
        if user is not None:
            environment |= {"X509_USER_CERT": str(user[0]), "X509_USER_KEY": str(user[1])}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL
        )
        return f"{done.returncode} {done.stdout}{done.stderr}"

    def save(self, credential: Credential) -> Path:
        path = self.folder / f"proxy-{certificates.serial_text(credential.certificate.serial_number)}.pem"
        credential.save(path)
        return path

    def openssl_verify(self, credential: Credential, *options: str) -> str:
        path = self.save(credential)
        flags = options or ("-allow_proxy_certs", "-crl_check_all")
        return self.run(
            "openssl", "verify", *flags, "-CApath", str(self.grid.trust_directory), "-untrusted", str(path), str(path)
        )

    def globus(self, credential: Credential) -> str:
        """ "OK" or why Globus' library refuses it: what a gatekeeper and GridFTP do with the chain of a client."""
        done = subprocess.run(
            [sys.executable, str(GLOBUS_JUDGE), str(self.grid.trust_directory)],
            input=f"{self.save(credential)}\n", text=True, capture_output=True,
            env={"PATH": os.environ["PATH"], "X509_CERT_DIR": str(self.grid.trust_directory)}, timeout=30, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    def ours(self, credential: Credential) -> str:
        """ "OK" or the reason of our refusal."""
        try:
            validate_client_chain(credential.pem_chain(), self.grid.trust, ValidationPolicy(), datetime.now(UTC))
        except ValidationError as error:
            return error.reason.value
        return "OK"
