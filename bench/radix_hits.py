"""Hit rates of the prefix tree on recorded traffic, for `python -m bench.radix`.

The traces are Mooncake's (Qin et al., FAST '25): JSON lines with `hash_ids`, each id naming a block
of 512 tokens and all before it. Here token j of block h is h · 512 + j: as distinct as the ids are,
and the same every run. A request is matched, leased, allocated, inserted and released before the
next one starts; answers are not kept, as the trace does not name them.

Hit rate is tokens held / tokens asked, every block counted as 512 tokens, so that with room for
everything it is the ideal block hit rate: 36.6 % (conversation) and 64.0 % (synthetic), which the
run asserts. Work saved weighs a token at position d with 1 + d / 29,000, what it costs to compute
on an 8B Llama. Beside the tree stand two caches of independent 512-token blocks, where only an
unbroken run from the start of a prompt counts: `blocks`, LRU in the order of use, and `blocks, tail
first`, where a request's last block is the first to go (what vLLM's free list does).

Predicted before measuring: blocks in order of use lose their own heads first and stay well below
the tree; tail first comes within 1 point of it; weighing recompute cost gains work saved, and gains
hits only because it counts uses too.

Found: the first was wrong. Order costs plain blocks 0.3 points at most, where the cache holds only
a few dozen prompts; a whole prompt goes soon after its head does. Tail first equals the tree to 0.1
point, so on hits the tree's gain over blocks is nil here: it is worth having for what it costs, for
pages of 16 tokens, and because it knows who shares what. Recompute cost against LRU: up to 37 %
more work saved where the cache is small (1M and 2M tokens, about what one large GPU holds), but 9 %
fewer hits at 4M on conversations, and less of both there from 16M on. So LRU is the default, and
the other is for small caches with long prompts.

Rejected, measured on the same traces: classes in steps of √2, or weights that grow slower than the
worth (nearer to LRU: win less, lose less); uses alone (more hits on conversations up to 8M, but
half the gain in work or none where that is large); depth alone (16 % fewer hits at 4M there).
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from radix import LRU, Lease, PageAllocator, Policy, RadixTree, RecomputeCost

PAGE_SIZE = 16
BLOCK = 512
EVEN_TOKENS = 29_000
CAPACITIES = (500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000, 32_000_000)
TRACES = {"conversation": 0.366, "synthetic": 0.640}
POLICIES: dict[str, Callable[[], Policy]] = {"LRU": LRU, "recompute cost": RecomputeCost}


@dataclass
class Rate:
    """What one cache of one size kept of one trace."""

    trace: str
    cache: str
    capacity_tokens: int
    hit_rate: float
    work_saved: float


def serve(tree: RadixTree, space: object, tokens: np.ndarray) -> Lease:
    """Match, lease, allocate, insert: the life of a prompt up to its release."""
    match = tree.match(space, tokens)
    lease = tree.lease(match)
    fresh = tree.allocate(len(tokens) // PAGE_SIZE - len(match.pages))
    if fresh is not None:
        pages = np.concatenate((match.pages, fresh))
        tree.insert(space, tokens[: len(pages) * PAGE_SIZE], pages, lease=lease)
    return lease


def read_trace(path: Path) -> list[np.ndarray]:
    """The block ids of each request, in order of arrival."""
    with path.open() as lines:
        return [np.array(json.loads(line)["hash_ids"], dtype=np.int32) for line in lines]


def expand(blocks: np.ndarray) -> np.ndarray:
    """Token ids of the blocks: int32 [blocks · 512]."""
    return (blocks[:, None] * BLOCK + np.arange(BLOCK, dtype=np.int32)).ravel()


def work(tokens: int) -> float:
    """What it costs to compute the first so many tokens of a prompt."""
    return tokens + tokens * tokens / (2 * EVEN_TOKENS)


def rated(trace: str, cache: str, capacity: int, held: list[int], asked: list[int]) -> Rate:
    """Both rates from tokens held and asked, by request."""
    saved = sum(map(work, held)) / sum(map(work, asked))
    return Rate(trace, cache, capacity, sum(held) / sum(asked), saved)


def tree_hits(requests: list[np.ndarray], capacity: int, policy: Policy) -> list[int]:
    """Tokens that the tree held of each request."""
    tree = RadixTree(PageAllocator(capacity // PAGE_SIZE), PAGE_SIZE, policy)
    held = []
    for blocks in requests:
        tokens = expand(blocks)
        held.append(tree.peek(None, tokens))
        serve(tree, None, tokens).release()
    return held


def block_hits(requests: list[np.ndarray], capacity: int, tail_first: bool) -> list[int]:
    """The same for LRU over independent blocks."""
    kept: OrderedDict[int, None] = OrderedDict()
    held = []
    for request in requests:
        blocks = request.tolist()
        run = next((i for i, block in enumerate(blocks) if block not in kept), len(blocks))
        held.append(run * BLOCK)
        for block in reversed(blocks) if tail_first else blocks:
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > capacity // BLOCK:
            kept.popitem(last=False)
    return held


def rates_of(trace: str, requests: list[np.ndarray]) -> Iterator[Rate]:
    """Every cache at every capacity, the last with room for everything."""
    asked = [len(blocks) * BLOCK for blocks in requests]
    everything = len(np.unique(np.concatenate(requests))) * BLOCK
    smaller = [capacity for capacity in CAPACITIES if capacity < everything]
    for capacity in (*smaller, everything):
        for tail_first, name in ((False, "blocks"), (True, "blocks, tail first")):
            held = block_hits(requests, capacity, tail_first)
            yield rated(trace, name, capacity, held, asked)
        for name, policy in POLICIES.items():
            held = tree_hits(requests, capacity, policy())
            yield rated(trace, f"tree, {name}", capacity, held, asked)


def print_rates(trace: str, rates: list[Rate]) -> None:
    """One row a capacity, one column a cache: hit rate / work saved."""
    names = list(dict.fromkeys(rate.cache for rate in rates))
    ideal = rates[-1]
    print(f"\n## {trace}: hit rate / work saved; ideal {ideal.hit_rate:.1%} / ", end="")
    print(f"{ideal.work_saved:.1%}, published {TRACES[trace]:.1%}\n")
    print("| capacity, tokens | " + " | ".join(names) + " |")
    print("| --- |" + " --- |" * len(names))
    for capacity in dict.fromkeys(rate.capacity_tokens for rate in rates):
        row = [rate for rate in rates if rate.capacity_tokens == capacity]
        cells = [f"{rate.hit_rate:.1%} / {rate.work_saved:.1%}" for rate in row]
        print(f"| {capacity:,} | " + " | ".join(cells) + " |")


def measure(folder: Path) -> dict[str, object]:
    """Run, print and return the hit rates of both traces."""
    found: list[Rate] = []
    for trace, published in TRACES.items():
        rates = list(rates_of(trace, read_trace(folder / f"{trace}_trace.jsonl")))
        print_rates(trace, rates)
        full = [rate for rate in rates if rate.capacity_tokens == rates[-1].capacity_tokens]
        assert all(round(rate.hit_rate, 3) == published for rate in full), "not the ideal"
        found += rates
    return {"rates": [asdict(rate) for rate in found]}
