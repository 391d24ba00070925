"""Our Llama: the mask keeps documents apart, an exported directory has what it needs."""

import json
from pathlib import Path

import pytest
import torch

from demo.export import export, load
from demo.model import Llama, Shape, document_mask, listed
from demo.optim import Muon, orthogonal
from demo.packs import Group

TINY = Shape(64, 2, 2, 1, 96, vocabulary=128, context=64)


def lively(shape: Shape) -> Llama:
    """A model whose zero-initialised outputs are filled, so that attention matters."""
    torch.manual_seed(0)
    model = Llama(shape)
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.1)
    return model


def test_a_document_answers_the_same_alone_and_packed() -> None:
    model = lively(TINY)
    ids = torch.randint(0, 128, (1, 40))
    docs = torch.tensor([[1] * 25 + [2] * 15])
    packed = model(ids, document_mask(docs))[0, 25:]
    alone = model(ids[:, 25:], document_mask(torch.ones(1, 15)))[0]
    assert torch.allclose(packed, alone, atol=1e-4)


def test_a_token_sees_no_later_token() -> None:
    model = lively(TINY)
    ids = torch.randint(0, 128, (1, 20))
    mask = document_mask(torch.ones(1, 20))
    before = model(ids, mask)[0, :10]
    ids[0, 10:] = 5
    assert torch.allclose(before, model(ids, mask)[0, :10], atol=1e-5)


def test_blocks_are_listed_set_ones_first() -> None:
    counts, order = listed(torch.tensor([[[True, False, True]]]))
    assert counts.tolist() == [[[2]]]
    assert order[0, 0, 0, :2].tolist() == [0, 2]


def test_an_exported_directory_comes_back_in_bfloat16(tmp_path: Path) -> None:
    model = lively(TINY)
    export(model, Path("demo/small/tokenizer.json"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    again = Llama(TINY)
    load(again, tmp_path)
    for mine, read in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine.bfloat16().float(), read)


def test_orthogonal_flattens_singular_values() -> None:
    torch.manual_seed(0)
    found = torch.linalg.svdvals(orthogonal(torch.randn(2, 8, 16)).float())
    assert float(found.min()) > 0.6
    assert float(found.max()) < 1.3


def test_muon_lowers_a_quadratic() -> None:
    torch.manual_seed(0)
    w, goal = torch.nn.Parameter(torch.zeros(6, 4)), torch.randn(6, 4)
    muon = Muon([w])
    losses = []
    for _ in range(60):
        loss = (w - goal).pow(2).sum()
        w.grad = None
        loss.backward()
        muon.step(0.05, decay=0.0)
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("draws", [1, 4])
def test_rows_are_drawn_once_before_any_is_drawn_twice(draws: int) -> None:
    group = Group("cpu")
    rows = torch.arange(8, dtype=torch.int16)[:, None].numpy()
    group.add(rows, rows.astype("uint8"))
    seen = [int(x) for _ in range(8 // draws) for x in group.draw(draws)[0]]
    assert sorted(seen) == list(range(8))
