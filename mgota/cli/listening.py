"""What commands that are a server have in common: where they listen, what they show, who may, and when they end."""

import signal
import socket
import ssl
from pathlib import Path

import anyio
import click

from mgota.cli.options import lines_of, read_user, tls_fault
from mgota.core.access import Credentials
from mgota.errors import ConfigError


def url_of(listener: socket.socket, *, secure: bool) -> str:
    """Such as `http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    return f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


async def until_terminated(scope: anyio.CancelScope) -> None:
    """Cancel the scope at SIGTERM."""
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def credentials_of(token_file: Path | None, user_file: Path | None) -> Credentials | None:
    """Who may; None if neither file is given.

    Raises:
        ConfigError: a file cannot be read, or is empty.
    """
    if token_file is None and user_file is None:
        return None
    tokens = lines_of(token_file, "token file") if token_file else []
    users = dict(read_user(line, user_file) for line in lines_of(user_file, "user file")) if user_file else {}
    return Credentials(tokens=tokens, users=users)


def server_context(cert: Path | None, key_file: Path | None, client_ca: Path | None) -> ssl.SSLContext | None:
    """What a server shows, and whom it asks to show something; None is plain HTTP.

    Raises:
        ConfigError: a file cannot be read, or is not in PEM.
    """
    if cert is None:
        if key_file or client_ca:
            raise click.UsageError("--key-file and --client-ca need --cert")
        return None
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(cert, key_file)
        if client_ca:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as exc:
        raise ConfigError(f"the certificates cannot be used: {tls_fault(exc)}") from exc
    return context


def bound_listener(host: str, port: int) -> socket.socket:
    """A socket that listens before the device boots: its clients wait, here and through every reset."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise ConfigError(f"{host} is no address to listen on: {exc.strerror}") from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as exc:
        listener.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {str(exc.strerror).lower()}") from exc
    return listener
