"""[models.NAME] with kind = "openai" → a remote model: where it is, how it is asked, who it is.

Keys and secret headers are read from the environment here, once, at start: a variable that is not
set stops the start and names the setting, instead of failing every request with a 502.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping

import httpx

from cascade.address import Addresses, AddressRefused
from cascade.guard import Backoff, Breaker
from cascade.remote import Remote, SecretMissing, Upstream, secret
from cascade.transport import open_transport
from gateway.backend import CannotLoad
from gateway.catalog import ModelCard
from gateway.masked import masked
from gateway.observe.logs import Log
from gateway.settings import Model, Settings

FROM_ENVIRONMENT = "env:"


class LatePool(httpx.AsyncBaseTransport):
    """A transport that is opened by its first request, because opening needs the event loop."""

    def __init__(self, opener: Callable[[], httpx.AsyncBaseTransport]) -> None:
        self._opener = opener
        self._opened: httpx.AsyncBaseTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._opened is None:
            self._opened = self._opener()
        return await self._opened.handle_async_request(request)

    async def aclose(self) -> None:
        if self._opened is not None:
            await self._opened.aclose()
            self._opened = None


class Upstreams:
    """The remote models of one gateway, and the connections that they share. Closed once."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], log: Log) -> None:
        """Raises CannotLoad."""
        self._pools = {
            http2: LatePool(lambda http2=http2: open_transport(http2=http2))  # type: ignore[misc]
            for http2 in (False, True)
        }
        self._log = log
        self._addresses: dict[str, Addresses] = {}
        self.answerers: dict[str, Remote] = {}
        self.cards: dict[str, ModelCard] = {}
        for name, model in settings.models.items():
            if model.kind == "openai":
                self.answerers[name] = self._remote(name, model, environ)
                self.cards[name] = card_of(name, model)

    def _remote(self, name: str, model: Model, environ: Mapping[str, str]) -> Remote:
        assert model.base_url is not None, "gateway.verify has looked"
        try:
            addresses = Addresses(model.base_url, allow_private=model.allow_private)
        except AddressRefused as error:
            raise CannotLoad(f"models.{name}.base_url: {masked(str(error))}") from None
        self._addresses[name] = addresses
        return Remote(
            upstream_of(name, model, environ),
            addresses,
            self._pools[model.http2],
            breaker=Breaker(time.monotonic),
            backoff=Backoff(random.Random()),
        )

    async def start(self) -> None:
        """Looks every host up. One that is not there now may be later: that is only told."""
        for name, addresses in self._addresses.items():
            try:
                await addresses.place("")
            except (AddressRefused, OSError) as error:
                self._log.warning("upstream cannot be reached", model=name, reason=str(error))

    def errors(self) -> Mapping[tuple[str, str], int]:
        """(model, kind) → how often a try failed."""
        return {
            (name, kind): count
            for name, remote in self.answerers.items()
            for kind, count in list(remote.errors.items())
        }

    async def stop(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()


def upstream_of(name: str, model: Model, environ: Mapping[str, str]) -> Upstream:
    """Raises CannotLoad where a variable of the environment is not set."""
    try:
        return Upstream(
            name=name,
            model=model.model or name,
            api_key=secret(model.api_key_env, environ) if model.api_key_env else "",
            headers=tuple(
                (header.lower(), _filled(value, environ)) for header, value in model.headers.items()
            ),
            connect_timeout_s=model.connect_timeout_s,
            first_byte_timeout_s=model.first_byte_timeout_s,
            between_bytes_timeout_s=model.between_bytes_timeout_s,
            max_tokens_field=model.max_tokens_field,
            bounded=model.max_context is not None,
        )
    except SecretMissing as error:
        raise CannotLoad(f"models.{name}: {error}") from None


def _filled(value: str, environ: Mapping[str, str]) -> str:
    if value.startswith(FROM_ENVIRONMENT):
        return secret(value.removeprefix(FROM_ENVIRONMENT), environ)
    return value


def card_of(name: str, model: Model) -> ModelCard:
    """The fingerprint is of the place and the name: what the server does there is its own affair,
    and a cached answer lives as long as its time."""
    told = f"{model.base_url} {model.model or name}"
    fingerprint = hashlib.blake2b(f"openai {told}".encode(), digest_size=16).hexdigest()
    return ModelCard(
        name=name,
        fingerprint=fingerprint,
        context=model.max_context,
        price_in=model.price_in,
        price_out=model.price_out,
        takes_extra=True,
        weights=fingerprint,
        tools=model.tools is not False,
        json=model.json is not False,
        vision=bool(model.vision),
        logprobs=model.logprobs is not False,
    )
