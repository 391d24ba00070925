"""Whose turn it is: virtual token counters.

Problem. One tenant's flood must not starve another, and a tenant that was away must not come back
with a claim on everything that it did not use.

Choice. Each tenant has a counter of served tokens, weighted (an output token costs more than an
input token) and divided by the tenant's share. Whoever waits with the smallest counter is admitted
next. A tenant that begins to wait is lifted to the smallest counter among those that already wait;
if nobody waits, to the counter of the one that waited last. Prompt tokens that came from the prefix
tree are not charged: they cost next to nothing, and a tenant who reuses prompts should gain by it.

    service of A ─ service of B  ≤  2 · max(input weight · longest prompt,
                                            output weight · tokens in flight)

for two tenants that both wait all the time (tested). lent.py lets one that has little running be
ahead by a step's tokens, which adds as many to the right side.

Rejected. Requests per minute: says nothing about work, and idles the machine. Deficit round robin:
needs to know an answer's length in advance.

Price. One dictionary look-up a token, and a counter for each tenant ever seen (they come from
the settings, so they are few).
Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI '24 (VTC).
"""

from __future__ import annotations

from collections.abc import Iterable


class Fair:
    """Counters of one lane's tenants. Owned by its scheduler."""

    def __init__(self, *, input_weight: float = 1.0, output_weight: float = 2.0) -> None:
        self._input_weight = input_weight
        self._output_weight = output_weight
        self._level: dict[str, float] = {}
        self._share: dict[str, float] = {}
        self._waiting: set[str] = set()
        self._last_level = 0.0

    def level(self, tenant: str) -> float:
        """Weighted tokens served, divided by share. Smallest goes first."""
        return self._level.get(tenant, 0.0)

    def begin(self, tenant: str, share: float) -> None:
        """The tenant has something waiting; `share` > 0 holds from now on."""
        assert share > 0, f"tenant {tenant} has share {share}"
        self._share[tenant] = share
        if tenant in self._waiting:
            return
        floor = min(map(self.level, self._waiting), default=self._last_level)
        self._level[tenant] = max(self.level(tenant), floor)
        self._waiting.add(tenant)

    def end(self, tenant: str) -> None:
        """The tenant has nothing waiting any more."""
        self._waiting.discard(tenant)
        self._last_level = self.level(tenant)

    def charge_input(self, tenant: str, tokens: int) -> None:
        """Prompt tokens that will be computed."""
        cost = self._input_weight * tokens / self._share[tenant]
        self._level[tenant] += cost

    def charge_outputs(self, tenants: Iterable[str]) -> None:
        """One generated token for each entry: a step's."""
        level, share, weight = self._level, self._share, self._output_weight
        for tenant in tenants:
            level[tenant] += weight / share[tenant]
