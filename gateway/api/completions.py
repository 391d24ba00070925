"""POST /v1/completions."""

from __future__ import annotations

from gateway.api.endpoint import Asked, Parse
from gateway.wire.completions import calls_of, max_tokens_of, new_decoder
from gateway.wire.completions_answer import CompletionSurface

PATH = "/v1/completions"


def new_parser() -> Parse:
    """Bytes → what is asked."""
    decoder = new_decoder()

    def parse(body: bytes) -> Asked:
        request, extra = decoder.decode(body)
        options = request.stream_options
        return Asked(
            model=request.model,
            max_tokens=max_tokens_of(request),
            extra=extra,
            calls=lambda place: calls_of(request, extra, place),
            surface=CompletionSurface(),
            stream=bool(request.stream),
            include_usage=bool(options and options.include_usage),
            user=request.user,
        )

    return parse
