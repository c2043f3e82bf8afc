"""One exchange with the broker over http.client, within a time limit; the only module that opens sockets."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from broker_cli.errors import TransientError, UnreachableError, UsageError

if TYPE_CHECKING:
    import http.client
    import ssl
    from collections.abc import Callable, Mapping

    from broker_cli.endpoint import Endpoint
    from broker_cli.proxy import Proxy

MAX_BODY_BYTES = 1024 * 1024
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0


class Reply(NamedTuple):
    """What came back, header names in lower case; nothing in it is to be trusted yet."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """The one connection to the broker, kept open from one request to the next."""

    def __init__(self, endpoint: Endpoint, *, proxy: Proxy | None, ca_file: str | None) -> None:
        self._endpoint = endpoint
        self._proxy = proxy
        self._ca_file = ca_file
        self._connection: http.client.HTTPConnection | None = None
        self._tls: ssl.SSLContext | None = None
        self._abandoned = False
        self._sent = False

    def exchange(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes | None, limit_s: float
    ) -> Reply:
        """Send one request and return the reply, whatever its status; redirects are not followed.

        Args:
            method: the HTTP method.
            path: path and query, below the broker's address.
            headers: all headers but those that http.client makes itself.
            body: the request's body.
            limit_s: seconds for the whole of it, name look-up and slow trickles included.

        Raises:
            TransientError: no connection, no answer in time, an answer cut off; `unsent` tells whether the
                broker can't have seen the request.
            UnreachableError: it can't work at the next try either.
            UsageError: the CA file or the proxy is no good.
        """
        if self._endpoint.scheme == "https" and self._tls is None:
            self._tls = _tls_context(self._ca_file)
        _import_http_client(tls=self._tls is not None)
        target = f"{self._endpoint.path}{path}"
        if self._proxy is not None and self._tls is None:
            target = f"http://{self._endpoint.authority}{target}"
            if self._proxy.authorization is not None:
                headers = {**headers, "Proxy-Authorization": self._proxy.authorization}

        def attempt() -> Reply:
            try:
                return self._attempt(method, target, headers, body, limit_s)
            except BaseException:
                self.close()
                raise

        self._sent = False
        try:
            return self._translated(lambda: self._within(limit_s, attempt))
        except TransientError as error:
            error.unsent = not self._sent and not self._abandoned
            raise

    def close(self) -> None:
        """Close the connection; the next exchange opens another."""
        if self._connection is not None and not self._abandoned:
            self._connection.close()
            self._connection = None

    def _attempt(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, limit_s: float
    ) -> Reply:
        """Send the request and read the reply, each step bounded by the socket's timeout only."""
        from http.client import IncompleteRead  # noqa: PLC0415

        connection = self._connected(limit_s)
        self._sent = True
        connection.request(method, target, body=body, headers=dict(headers))
        response = connection.getresponse()
        content = response.read(MAX_BODY_BYTES + 1)
        if len(content) > MAX_BODY_BYTES:
            raise UnreachableError(f"unexpected answer from {self._endpoint.url}: it is larger than 1 MiB")
        if response.length:  # a sized read does not complain about a body that ends early
            raise IncompleteRead(b"", response.length)
        received = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, received, content)

    def _within(self, limit_s: float, attempt: Callable[[], Reply]) -> Reply:
        """Run an attempt and wait for it no longer than the limit.

        In a thread, because nothing else bounds a name look-up or an answer that trickles in byte by byte.
        One that is given up dies with the process, which ends soon after.

        Raises:
            TimeoutError: the limit has passed.
        """
        replies: list[Reply] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                replies.append(attempt())
            except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
                errors.append(error)

        thread = threading.Thread(target=work, name="broker-cli-exchange", daemon=True)
        thread.start()
        try:
            thread.join(limit_s)
        except BaseException:  # a signal: Ctrl-C, or SIGTERM for --watch
            self._abandoned = True
            raise
        if errors:
            raise errors[0]
        if not replies:
            self._abandoned = True  # to close what the thread is reading from would wait for the thread
            raise TimeoutError
        return replies[0]

    def _connected(self, limit_s: float) -> http.client.HTTPConnection:
        """Return the connection, open, with its read timeout set."""
        connection = self._connection
        if connection is None or connection.sock is None:
            connection = self._connection = self._open(min(CONNECT_TIMEOUT_S, limit_s))
        if connection.sock is not None:
            connection.sock.settimeout(min(READ_TIMEOUT_S, limit_s))
        return connection

    def _open(self, timeout_s: float) -> http.client.HTTPConnection:
        """Return a new connection, straight or through the proxy."""
        import http.client  # noqa: PLC0415
        import socket  # noqa: PLC0415

        near = self._endpoint if self._proxy is None else self._proxy
        if self._tls is None:
            connection = http.client.HTTPConnection(near.host, near.port)
            # As bytes the host needs no IDNA codec, which would cost 2 ms; it is known to be ASCII.
            address: tuple[Any, int] = (near.host.encode("ascii"), near.port)
            connection.sock = socket.create_connection(address, timeout_s)
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        connection = http.client.HTTPSConnection(near.host, near.port, timeout=timeout_s, context=self._tls)
        if self._proxy is not None:
            authorization = self._proxy.authorization
            connection.set_tunnel(
                self._endpoint.host,
                self._endpoint.port,
                headers={} if authorization is None else {"Proxy-Authorization": authorization},
            )
        connection.connect()
        return connection

    def _translated(self, call: Callable[[], Reply]) -> Reply:
        """Run a call and turn what sockets, TLS and HTTP raise into our own errors."""
        import http.client  # noqa: PLC0415
        import socket  # noqa: PLC0415

        where = self._endpoint.url
        if self._proxy is not None:
            where = f"{where} through the proxy {self._proxy.host}:{self._proxy.port}"
        try:
            return call()
        except TimeoutError:
            raise TransientError(f"no answer from {where} in time") from None
        except socket.gaierror as error:
            host = self._endpoint.host if self._proxy is None else self._proxy.host
            raise TransientError(
                f"cannot resolve the host {host} ({error.strerror}): check its name"
            ) from None
        except http.client.IncompleteRead:
            raise TransientError(f"the answer from {where} was cut off") from None
        except http.client.RemoteDisconnected:
            raise TransientError(f"{where} closed the connection without an answer") from None
        except http.client.HTTPException:
            raise UnreachableError(
                f"unexpected answer from {where}: it is not HTTP; check scheme, host and port of the address"
            ) from None
        except OSError as error:
            raise _connection_error(error, where) from None


def _connection_error(error: OSError, where: str) -> Exception:
    """Classify what the operating system, TLS or a proxy said."""
    import re  # noqa: PLC0415

    tunnel = re.match(r"Tunnel connection failed: (\d{3})", str(error))
    if tunnel is not None:
        status = int(tunnel[1])
        if status == 407:  # noqa: PLR2004 - Proxy Authentication Required
            return UsageError(
                f"cannot reach {where}: the proxy wants credentials (407); put them into HTTPS_PROXY"
            )
        kind = TransientError if status in {429, 502, 503, 504} else UnreachableError
        return kind(f"cannot reach {where}: the proxy refused the connection ({status})")
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return UnreachableError(
                f"the certificate of {where} is not trusted ({error.verify_message}): for a private CA set"
                " BROKER_CA_FILE (or --ca-file) to its certificate"
            )
        if isinstance(error, ssl.SSLError) and not isinstance(
            error, ssl.SSLEOFError | ssl.SSLZeroReturnError
        ):
            return UnreachableError(
                f"TLS with {where} failed ({error.reason}): does it speak https on this port?"
            )
    return TransientError(f"cannot connect to {where}: {error.strerror or type(error).__name__}")


def _import_http_client(*, tls: bool) -> None:
    """Import http.client, without ssl if nothing here speaks TLS.

    http.client imports ssl where it can: 7 of the 60 ms of a call to a broker on this machine. This process
    talks to one broker and ends, so nobody misses `HTTPSConnection`; one that has either module keeps it.
    """
    if tls or "ssl" in sys.modules or "http.client" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]  # makes `import ssl` an ImportError
    try:
        import http.client  # noqa: F401, PLC0415
    finally:
        del sys.modules["ssl"]


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return a verifying context; a CA file stands in place of the system's CAs."""
    import ssl  # noqa: PLC0415 - 7 ms that plain http to this machine does not need

    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise UsageError(f"the CA file {ca_file} holds no PEM certificate") from None
    except OSError as error:
        raise UsageError(f"cannot read the CA file {ca_file}: {error.strerror}") from None
