"""The service's own certificate, which may be replaced while it listens; does no I/O."""

import ssl


class TlsIdentity:
    """Answers each TLS handshake with the latest certificate.

    A context that listens cannot take another certificate safely: between its new certificate and its new
    key it would have halves of two. So each handshake is handed over to a context that is whole.

    Args:
        context: the first one; the one that listens.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.listening = context
        self._latest = context
        context.sni_callback = self._hand_over

    def use(self, context: ssl.SSLContext) -> None:
        """Show this context's certificate from the next handshake on."""
        self._latest = context

    def _hand_over(self, connection: ssl.SSLObject, name: str | None, listening: ssl.SSLContext) -> None:
        del name, listening  # called also when the client names no host
        connection.context = self._latest
