"""Options of the commands that serve: where the server keeps its keys and log, and TLS."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from foundation.errors import InvalidRequest

if TYPE_CHECKING:
    from serving.config import TlsConfig


def add_tls(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tls-certificate", metavar="FILE", help="serve https with this certificate chain (PEM)")
    command.add_argument("--tls-key", metavar="FILE", help="the certificate's private key (PEM, without a password)")


def tls_config(chosen: argparse.Namespace) -> TlsConfig | None:
    """What was chosen; None where the command has no such options or none was given."""
    from serving.config import TlsConfig

    certificate, key = getattr(chosen, "tls_certificate", None), getattr(chosen, "tls_key", None)
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InvalidRequest("Give --tls-certificate and --tls-key together.", param="tls_certificate")
    return TlsConfig(certificate, key)
