"""Whether an engine's process hangs, from what comes from it and what does not.

Two things are told apart. The process hangs (stopped, its machine's memory on disk, its interpreter
stuck in a driver): nothing comes at all, though a thread of its own there beats every second, also
while models load and whatever the engine computes. A step hangs: it beats, but a model that was
asked long ago has computed nothing since, not for anybody. The second bound must hold a step of a
large model on a slow CPU, hence `engine.step_timeout_s`.

Times are summed look by look, each counted for two seconds at most: a gateway that stood still
itself (stopped with its whole group, a suspended machine) finds an old clock and a full line, and
blames nobody for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gateway.engine_process.ticket import Ticket
from gateway.observe.metrics import EngineState

LOOK_EVERY_S = 1.0
GPU_STEP_S = 120.0
"""Of which compiling a kernel may take seconds, computing less than one."""
CPU_STEP_S = 600.0
"""512 tokens of an 8b model are some 8 TFLOP: minutes on a few slow cores."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long it may say nothing, in seconds: once it serves, and before. Finding the devices of a
    large machine may keep Python's lock for half a minute, importing all there is as well."""

    silent_s: float = 20.0
    loading_s: float = 180.0


class Watch:
    """Over one process, from the moment when its line is read."""

    def __init__(self, clock: Callable[[], float], bounds: Bounds) -> None:
        self._clock = clock
        self._bounds = bounds
        self._looked = clock()
        self._silent_s = 0.0
        self._still_s: dict[str, float] = {}
        self._computed: dict[str, int] = {}

    def heard(self) -> None:
        """Something came."""
        self._silent_s = 0.0

    def look(
        self,
        tickets: Iterable[Ticket],
        states: Mapping[str, EngineState],
        step_s: float,
        *,
        loading: bool,
    ) -> str | None:
        """Why it must be taken to hang, in words for an operator; None: it need not be. `tickets`
        are the calls that it has, oldest first; `states` what it told last of each model."""
        now = self._clock()
        passed, self._looked = min(now - self._looked, 2 * LOOK_EVERY_S), now
        self._silent_s += passed
        bound_s = self._bounds.loading_s if loading else self._bounds.silent_s
        if self._silent_s > bound_s:
            return f"the engine's process hangs: nothing came from it for {bound_s:g} s"
        oldest: dict[str, float] = {}
        for ticket in tickets:
            oldest.setdefault(ticket.model, ticket.arrival)
        for name, state in states.items():
            still_s = self._stands_still_s(name, state, passed, asked=name in oldest)
            if still_s > step_s < now - oldest.get(name, now):
                return (
                    f"a step of {name} hangs: it computed nothing for {step_s:g} s "
                    "(engine.step_timeout_s), though it was asked"
                )
        return None

    def _stands_still_s(
        self, name: str, state: EngineState, passed: float, *, asked: bool
    ) -> float:
        computed = sum(state.computed.values())
        moves = not asked or self._computed.get(name) != computed
        self._computed[name] = computed
        self._still_s[name] = 0.0 if moves else self._still_s.get(name, 0.0) + passed
        return self._still_s[name]


def step_bound(setting: float | None, device: str) -> float:
    """Seconds. `device`: the kind that it computes on, cpu or cuda."""
    if setting is not None:
        return setting
    return CPU_STEP_S if device == "cpu" else GPU_STEP_S
