"""POST /v1/chat/completions."""

from __future__ import annotations

from gateway.api.endpoint import Asked, Parse
from gateway.wire.chat import call_of, max_tokens_of, new_decoder
from gateway.wire.chat_answer import ChatSurface

PATH = "/v1/chat/completions"


def new_parser() -> Parse:
    """Bytes → what is asked."""
    decoder = new_decoder()
    surface = ChatSurface()

    def parse(body: bytes) -> Asked:
        request, extra = decoder.decode(body)
        options = request.stream_options
        return Asked(
            model=request.model,
            max_tokens=max_tokens_of(request),
            extra=extra,
            calls=lambda place: (call_of(request, extra, place),),
            surface=surface,
            stream=bool(request.stream),
            include_usage=bool(options and options.include_usage),
            user=request.user or request.safety_identifier,
        )

    return parse
