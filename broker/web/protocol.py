"""The HTTP/1.1 protocol under uvicorn, with bounds that its parser does not have; reads the socket."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request line with all its headers; a little more may arrive with the read that goes beyond."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request head does not end: it would fill the memory.

    uvicorn's httptools parser collects headers without a limit.
    """

    _head_bytes = 0
    _in_head = True

    def on_message_begin(self) -> None:
        """A head begins."""
        self._head_bytes = 0
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head is whole; what follows is bounded by who reads it."""
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.close()
