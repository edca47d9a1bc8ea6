"""Products of attention by signs: where they are found, what they compute, and that they train and pack."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnnconvert
from bnnconvert.graph import module_of
from bnnconvert.layers.attention import BinaryAttention
from bnnconvert.layers.operators import binary_attention
from bnnconvert.recipe import load_recipe
from bnnconvert.values.recipe import Named, Recipe


class Block(nn.Module):
    """Attention by torch's function, `options` being its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.register_buffer("mask", (torch.arange(6) != 3).repeat(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        options = self.options | ({"attn_mask": self.mask} if self.options.get("attn_mask") else {})
        y = F.scaled_dot_product_attention(q, k, v, **options)
        return x + self.proj(y.transpose(1, 2).reshape(n, t, 16))


class Net(nn.Module):
    """Tokens through a block or torch's own layer, to classes."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(5, 16), block, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)).mean(1))


def with_products(products: str, name: str = "bwn") -> Recipe:
    recipe = load_recipe(name)
    added = Named.model_validate({"name": "binarize-attention", "products": products})
    return recipe.model_copy(update={"rewrites": [*recipe.rewrites, added]})


BLOCKS = {
    "function": lambda: Block(),
    "causal": lambda: Block(is_causal=True),
    "mask": lambda: Block(attn_mask=True),
    "scale": lambda: Block(scale=0.2),
    "torch's layer": lambda: nn.TransformerEncoderLayer(16, 2, 20, dropout=0.0, batch_first=True),
}


@pytest.mark.parametrize("products", ["scores", "both"])
@pytest.mark.parametrize("name", BLOCKS)
def test_products_are_of_signs_in_training_evaluation_and_the_file(name: str, products: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 5)
    student = bnnconvert.convert(Net(BLOCKS[name]()), with_products(products), example_inputs=(x,))
    assert [r.count for r in student.plan.rewrites if r.name == "binarize-attention"] == [1]
    made = [m for n in student.model.graph.nodes if isinstance(m := module_of(student.model, n), BinaryAttention)]
    assert len(made) == 1
    assert made[0].is_causal == (name == "causal")
    assert made[0].scale == (0.2 if name == "scale" else None)

    given: list[tuple[Tensor, ...]] = []
    handle = made[0].register_forward_hook(lambda _m, args, y: given.append((*args, y)))
    evaluated = student.model.eval()(x)
    handle.remove()
    *operands, y = given[0]
    q, k, v, *masks = operands
    if made[0].heads is not None:
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v))
        y = y.unflatten(-1, (2, 8)).transpose(1, 2)
    mask = torch.ones(6, 6).tril().bool() if name == "causal" else (masks or [None])[0]
    assert torch.equal(y, binary_attention(q, k, v, mask, 0.2 if name == "scale" else 8**-0.5, products == "both"))

    student.model.train()(x).square().mean().backward()
    weights = dict(student.model.named_parameters())
    path = "block.qkv.weight" if "block.qkv.weight" in weights else "block.self_attn.in_proj.weight"
    assert all(part.abs().sum() > 0 for part in weights[path].grad.chunk(3))

    student.model.eval()
    bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    session = bnnconvert.Session(tmp_path / "net.packed.safetensors")
    assert [node.op for node in session.artifact.program.nodes].count("bnnconvert.binary_attention") == 1
    np.testing.assert_allclose(session.run(x.numpy()), evaluated.detach(), rtol=1e-4, atol=1e-5)


def test_attention_that_cannot_be_taken_apart_is_refused_by_name() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.mix = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.attention(x, x, x, key_padding_mask=x[..., 0] > 9)[0])

    for block, words in ((Padded(), "block.attention: .* padding mask"), (Block(enable_gqa=True), "share a head")):
        student = bnnconvert.convert(Net(block), with_products("scores"), example_inputs=(torch.randn(2, 6, 5),))
        record = next(r for r in student.plan.rewrites if r.name == "binarize-attention")
        assert record.count == 0
        assert re.search(words, " ".join(record.refusals))


def test_options_are_checked() -> None:
    with pytest.raises(bnnconvert.errors.UsageError, match="products"):
        bnnconvert.convert(Net(Block()), with_products("all"), example_inputs=(torch.randn(2, 6, 5),))


@pytest.mark.parametrize("products", ["scores", "both"])
def test_a_network_learns_to_look_by_signs(products: str) -> None:
    """Which of the tokens is marked, and what stands in it: no layer but attention brings the two together."""
    torch.manual_seed(0)
    student = bnnconvert.convert(Net(Block()), with_products(products), example_inputs=(torch.randn(2, 6, 5),))
    optimizer = torch.optim.Adam(student.model.parameters(), 3e-3)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        what, where = torch.randint(3, (n, 6)), torch.randint(6, (n,))
        marked = F.one_hot(where, 6)[..., None]
        x = torch.cat([F.one_hot(what, 3), marked, 1 - marked], -1).float()
        return x, what.gather(1, where[:, None])[:, 0]

    student.model.train()
    for _ in range(300):
        x, y = draw(64)
        optimizer.zero_grad()
        F.cross_entropy(student.model(x), y).backward()
        optimizer.step()
    x, y = draw(500)
    assert (student.model.eval()(x).argmax(1) == y).float().mean() > 0.9
