"""OpenTelemetry: one span for each answer, with a child for each stage that it went through.

The outermost answerer, put there only where [traces] names an endpoint, so that whoever does not
trace pays nothing. Names and attributes follow OpenTelemetry's conventions for generative AI
(`gen_ai.*`); what they have no word for is `sluice.*`. Prompts and answers are never in a span.

The span's context travels inwards as `Trail.traceparent`, so that an upstream server's own spans
hang below ours; a caller's context comes in by the same field. Stages have been timed by whoever
went through them (`Trail.span`), and become children when the answer is over. Creating a span costs
some 20 µs and its children 10 µs each; they leave in batches from a thread of the library's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine.contract import Answer, Answerer, AnswerError, Call, End, Finish, Start, Trail, unroll

OPERATIONS = {"chat": "chat", "text": "text_completion"}
Value = str | bool | int | float | list[str]
_CONTEXT = TraceContextTextMapPropagator()


class TraceLayer:
    """Wraps the whole onion. The provider, and what it exports to, belong to who made them."""

    def __init__(self, inner: Answerer, provider: TracerProvider) -> None:
        self._inner = inner
        self._tracer = provider.get_tracer("sluice")

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        caller = _CONTEXT.extract({"traceparent": trail.traceparent})
        span = self._tracer.start_span(
            f"{OPERATIONS[call.kind]} {call.model}",
            context=caller,
            kind=SpanKind.SERVER,
            attributes=dict(_asked(call, trail)),
        )
        inside = set_span_in_context(span, caller)
        trail.traceparent = _header(inside)
        answer = self._inner(call, trail)
        reasons: list[str] = []
        try:
            async for event in answer:
                for one in unroll(event):
                    _note(span, one, reasons)
                yield event
        except AnswerError as error:
            _failed(span, str(error.status), error.message)
            raise
        except Exception as error:
            _failed(span, type(error).__name__, "the answer broke")
            raise
        finally:
            try:
                await answer.aclose()
            finally:
                self._end(span, trail, inside)

    def _end(self, span: Span, trail: Trail, inside: Context) -> None:
        if span.is_recording():
            for name, value in _happened(trail):
                span.set_attribute(name, value)
            offset = time.time() - time.perf_counter()
            for stage, started in trail.spans_at.items():
                begin = started + offset
                child = self._tracer.start_span(
                    stage, context=inside, start_time=_nanoseconds(begin)
                )
                child.end(_nanoseconds(begin + trail.spans_ms[stage] / 1e3))
        span.end()


def _asked(call: Call, trail: Trail) -> Iterator[tuple[str, Value]]:
    """What is known when the call comes in. What the caller did not say is left out."""
    sampling = call.sampling
    said: dict[str, Value | None] = {
        "gen_ai.operation.name": OPERATIONS[call.kind],
        "gen_ai.provider.name": "sluice",
        "gen_ai.request.model": call.model,
        "gen_ai.request.choice.count": call.n if call.n > 1 else None,
        "gen_ai.request.max_tokens": call.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.seed": sampling.seed,
        "sluice.tenant": trail.tenant,
        "sluice.request.id": trail.id,
    }
    return ((name, value) for name, value in said.items() if value is not None)


def _note(span: Span, event: object, reasons: list[str]) -> None:
    if isinstance(event, Start):
        span.set_attribute("gen_ai.response.id", event.id)
        span.set_attribute("gen_ai.response.model", event.model)
        span.set_attribute("sluice.origin", event.origin)
    elif isinstance(event, Finish):
        reasons.append(event.reason)
    elif isinstance(event, End):
        usage = event.usage
        span.set_attribute("gen_ai.response.finish_reasons", reasons)
        span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens)
        span.set_attribute("sluice.computed_tokens", usage.computed_tokens)


def _failed(span: Span, kind: str, message: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, message))


def _happened(trail: Trail) -> Iterator[tuple[str, Value]]:
    """What each layer said of itself."""
    for status in trail.cache:
        outcome = "hit" if status.hit else status.forward or "miss"
        yield f"sluice.cache.{status.layer}", "collapsed" if status.collapsed else outcome
    for decision in trail.decisions:
        yield f"sluice.decision.{decision.layer}", f"{decision.choice}: {decision.reason}"


def _header(context: Context) -> str:
    carrier: dict[str, str] = {}
    _CONTEXT.inject(carrier, context)
    return carrier.get("traceparent", "")


def _nanoseconds(wall_s: float) -> int:
    return int(wall_s * 1e9)
