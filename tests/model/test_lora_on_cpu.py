"""Our LoRA functions for vLLM's CPU engine: vLLM's own sums, right for tokens without adapter."""

from __future__ import annotations

import pytest

from cluster import lora_on_cpu

torch = pytest.importorskip("torch")

TOKENS, HIDDEN, RANK, OUT, ADAPTERS = 37, 48, 8, 96, 3


@pytest.fixture
def theirs():
    """vLLM's own functions, whether replaced in this process or not."""
    import importlib.util

    spec = importlib.util.find_spec("vllm.lora.ops.torch_ops.lora_ops")
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh


def tensors(four_dimensions: bool):
    torch.manual_seed(0)
    one = (1,) if four_dimensions else ()
    shrink = torch.randn(ADAPTERS, *one, RANK, HIDDEN)
    expand = torch.randn(ADAPTERS, *one, OUT, RANK)
    return torch.randn(TOKENS, HIDDEN), torch.randn(TOKENS, RANK), shrink, expand


@pytest.mark.parametrize("four_dimensions", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_the_same_sums_as_vllm_where_every_token_has_an_adapter(theirs, four_dimensions, mixed) -> None:
    wide, narrow, a, b = tensors(four_dimensions)
    indices = torch.randint(0, ADAPTERS, (TOKENS,)) if mixed else torch.ones(TOKENS, dtype=torch.long)
    for name, arguments, width in (
        ("bgmv_shrink", (wide, a, indices, 0.5), RANK),
        ("bgmv_expand", (narrow, b, indices, True), OUT),
        ("bgmv_expand", (narrow, b, indices, False), OUT),
        ("bgmv_expand_slice", (narrow, b, indices, 16, OUT, True), OUT + 32),
        ("bgmv_expand_slice", (narrow, b, indices, 16, OUT, False), OUT + 32),
    ):
        inputs, weights, *rest = arguments
        start = torch.randn(TOKENS, width)
        got, wanted = start.clone(), start.clone()
        getattr(lora_on_cpu, name)(inputs, weights, got, *rest)
        getattr(theirs, name)(inputs, weights, wanted, *rest)
        torch.testing.assert_close(got, wanted)


def test_a_token_without_adapter_stays_as_the_base_model_made_it() -> None:
    wide, narrow, a, b = tensors(True)
    indices = torch.tensor([-1, 0, 2] * 12 + [-1])
    shrunk = torch.full((TOKENS, RANK), 7.0)
    lora_on_cpu.bgmv_shrink(wide, a, shrunk, indices)
    assert (shrunk[indices < 0] == 0).all()
    before = torch.randn(TOKENS, OUT)
    after = before.clone()
    lora_on_cpu.bgmv_expand(narrow, b, after, indices)
    assert torch.equal(after[indices < 0], before[indices < 0])
    assert not torch.equal(after[indices >= 0], before[indices >= 0])


def test_no_adapter_at_all_changes_nothing() -> None:
    _, narrow, _, b = tensors(True)
    before = torch.randn(TOKENS, OUT)
    after = before.clone()
    lora_on_cpu.bgmv_expand_slice(narrow, b, after, torch.full((TOKENS,), -1), 0, OUT)
    assert torch.equal(after, before)


def test_a_worker_with_the_extension_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu
    from vllm.utils.import_utils import resolve_obj_by_qualname

    for module in (lora_ops, punica_cpu):
        monkeypatch.setattr(module, "bgmv_shrink", None)
        monkeypatch.setattr(module, "bgmv_expand_slice", None)

    class Base:
        def __init__(self, rank: int) -> None:
            self.rank = rank

    class Worker(Base):
        pass

    # As vLLM does it when it makes its worker.
    Worker.__bases__ += (resolve_obj_by_qualname(lora_on_cpu.WORKER_EXTENSION),)
    assert Worker(rank=3).rank == 3
    for module in (lora_ops, punica_cpu):
        assert module.bgmv_shrink is lora_on_cpu.bgmv_shrink
        assert module.bgmv_expand_slice is lora_on_cpu.bgmv_expand_slice
