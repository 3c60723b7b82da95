"""A real mosquitto on free ports of 127.0.0.1, for tests and benchmarks."""

import getpass
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self


class Mosquitto:
    """A broker: plain TCP and WebSockets, and if asked for TLS and passwords.

    Args:
        directory: for its files.
        nodelay: `set_tcp_nodelay`; a stock broker has it off.
        pki: directory of ca.pem, server.pem and client.pem: adds a TLS listener at `tls_port` that asks for a client's
            certificate if `client_certificates`.
        users: names and passwords; without any, everybody may come.
        lines: more of its configuration.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodelay: bool = True,
        pki: Path | None = None,
        client_certificates: bool = False,
        users: dict[str, str] | None = None,
        lines: tuple[str, ...] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port, self.ws_port, self.tls_port = free_ports(3)
        config = [
            f"set_tcp_nodelay {str(nodelay).lower()}",
            "persistence false",
            f"user {getpass.getuser()}",  # root's would become somebody who cannot read the test's files
            "log_dest stderr",
            "connection_messages true",
            *lines,
            f"allow_anonymous {str(not users).lower()}",
        ]
        if users:
            config.append(f"password_file {self._passwords(users)}")
        config += [f"listener {self.port} 127.0.0.1", f"listener {self.ws_port} 127.0.0.1", "protocol websockets"]
        if pki:
            config += [
                f"listener {self.tls_port} 127.0.0.1",
                f"cafile {pki / 'ca.pem'}",
                f"certfile {pki / 'server.pem'}",
                f"keyfile {pki / 'server.pem'}",
                f"require_certificate {str(client_certificates).lower()}",
            ]
        self._ports = (self.port, self.ws_port, self.tls_port) if pki else (self.port, self.ws_port)
        self._config = directory / "mosquitto.conf"
        self._config.write_text("\n".join(config) + "\n")
        self._log = directory / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Without a device: append `/ROOT/DEVICE`."""
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"mqtts://127.0.0.1:{self.tls_port}"

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def start(self) -> None:
        assert self._process is None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([_program(), "-c", self._config], stdout=log, stderr=log)
        for _ in range(500):
            if self._process.poll() is not None:
                break
            try:
                for port in self._ports:
                    socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        self.stop()
        raise AssertionError(f"mosquitto did not start:\n{self.log}")

    def stop(self) -> None:
        """As a power cut: it says goodbye to nobody."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """On the same ports; sessions and retained messages are forgotten."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _passwords(self, users: dict[str, str]) -> Path:
        path = self.directory / "passwords"
        path.touch(mode=0o600)
        tool = shutil.which("mosquitto_passwd") or "mosquitto_passwd"
        for name, password in users.items():
            subprocess.run([tool, "-b", path, name, password], check=True, capture_output=True)
        return path


def _program() -> str:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin") or "mosquitto"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
