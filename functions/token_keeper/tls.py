"""Whose certificates are trusted beyond AWS: WeChat's, and those of group robots."""

import ssl
from functools import cache

import certifi


@cache
def context() -> ssl.SSLContext:
    """One for all connections: to load the authorities takes some 50 ms. Not every Python finds the system's."""
    authorities = ssl.create_default_context()
    authorities.load_verify_locations(certifi.where())
    return authorities
