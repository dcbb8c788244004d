"""Find out at once that there is no network, before Hugging Face's hub is asked.

huggingface_hub repeats a request that fails for up to three quarters of a minute, with a warning
each time.
"""

from __future__ import annotations

import importlib
import socket
import urllib.parse
import urllib.request

__all__ = ["hub_address", "why_unknown_host"]


def hub_address() -> str:
    """Address of Hugging Face's hub ($HF_ENDPOINT); "" if huggingface_hub is not installed."""
    try:
        return importlib.import_module("huggingface_hub").constants.ENDPOINT
    except ImportError:  # the package that needs it says so
        return ""


def why_unknown_host(address: str) -> str:
    """Why the host of an address cannot be found, as without a network; "" if it can be.

    With a proxy, which finds the host, it is not looked for.
    """
    host = urllib.parse.urlsplit(address).hostname
    if host and not urllib.request.getproxies():
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            return f"the host {host} cannot be found ({error.strerror})"
    return ""
