"""[traces] → who makes spans and sends them. OpenTelemetry is an optional dependency: imported by
assemble.py only where an endpoint is named."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from gateway.settings import Traces


def build_provider(traces: Traces) -> TracerProvider:
    """Spans leave in batches from a thread of its own; `shutdown` sends the last ones. What is to
    be sent beside them (a collector's key) comes from OTEL_EXPORTER_OTLP_HEADERS."""
    assert traces.endpoint is not None
    resource = Resource.create({SERVICE_NAME: traces.service})
    sampler = ParentBased(TraceIdRatioBased(traces.share))
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{traces.endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
