"""An HTTP transport for OpenAI's SDK that holds all that comes through it to the SDK's types."""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from tests.common.api.answer_types import check_answer, check_events


class CheckedTransport(httpx.HTTPTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        assert isinstance(response.stream, httpx.SyncByteStream)
        if response.status_code == 200:
            is_stream = response.headers["content-type"].startswith("text/event-stream")
            response.stream = _Watched(response.stream, request, is_stream=is_stream)
        return response


class _Watched(httpx.SyncByteStream):
    def __init__(
        self, inner: httpx.SyncByteStream, request: httpx.Request, *, is_stream: bool
    ) -> None:
        self._inner = inner
        self._request = request
        self._is_stream = is_stream

    def __iter__(self) -> Iterator[bytes]:
        data = bytearray()
        for piece in self._inner:
            data += piece
            yield piece
        path = self._request.url.path
        if self._is_stream:
            check_events(path, bytes(data), is_whole=True)
        else:
            check_answer(self._request.method, path, bytes(data))

    def close(self) -> None:
        self._inner.close()
