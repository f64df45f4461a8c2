"""LoRA in vLLM's CPU engine: right for mixed batches, and without a copy of the adapter for each token.

vLLM 0.29 has two faults in ``vllm.lora.ops.torch_ops``, which its CPU backend uses:

- A token without adapter has the index -1, and that selects the *last* adapter: in a batch with requests to
  the base model and to an adapter the base's answers are silently wrong (vllm#48421, vllm#49656, both open).
- ``weights[indices]`` makes a copy of the adapter's matrix for every token: a prefill of 3,840 tokens takes
  274 ms of CPU a projection; the same product once for each adapter takes 7.

So vLLM gets other functions for the same sums, in each worker of an engine that is started with
``worker_extension_cls=WORKER_EXTENSION``; on other platforms nothing happens. To be removed with a vLLM that
has repaired both.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch

#: For vLLM's engine argument ``worker_extension_cls``.
WORKER_EXTENSION = "cluster.lora_on_cpu.LoraOnCpu"
_REPLACED = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")


class LoraOnCpu:
    """What vLLM adds to its worker's bases: the functions are in place before the worker loads anything.

    An entry point of vLLM's plugins would do the same, but only where this project is installed; a node of a
    cluster has its code from the runtime environment alone.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make a worker, in the worker's process."""
        register()
        return super().__new__(cls)


def register() -> None:
    """Put our functions in the place of vLLM's, if this is a CPU engine. Calling it again changes nothing."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    if not all(hasattr(module, name) for module in (lora_ops, punica_cpu) for name in _REPLACED):
        logging.getLogger(__name__).warning("This vLLM has other LoRA functions on CPU; they are left alone.")
        return
    for module in (lora_ops, punica_cpu):  # The second imported them by name.
        for name in _REPLACED:
            setattr(module, name, globals()[name])


def bgmv_shrink(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """``output[t, :r] = scaling * inputs[t] @ A[index of t].T``, and 0 for a token without adapter.

    :param inputs: (tokens, hidden).
    :param lora_b_weights: (adapters, [1,] r, hidden); named as in vLLM.
    :param lora_indices_tensor: (tokens,), -1 for none.
    """
    outputs = _products(inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype)
    output_tensor[:, : outputs.shape[1]] = scaling * outputs


def bgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """``output[t] += inputs[t] @ B[index of t].T`` (``=`` unless ``add_inputs``); shapes as for shrinking."""
    outputs = _products(inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype)
    # Adapter and model may pad their outputs differently.
    width = min(outputs.shape[1], output_tensor.shape[1])
    _put(output_tensor, outputs[:, :width], 0, add_inputs)


def bgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """As :func:`bgmv_expand`, into the ``slice_size`` columns of the output from ``slice_offset`` on."""
    outputs = _products(inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype)
    _put(output_tensor, outputs[:, :slice_size], slice_offset, add_inputs)


def _put(output: torch.Tensor, values: torch.Tensor, offset: int, add: bool) -> None:
    target = output[:, offset : offset + values.shape[1]]
    if add:
        target += values
    else:
        target.copy_(values)


def _products(
    inputs: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """(tokens, out): each token times its adapter's matrix, one product for each adapter in the batch."""
    import torch

    matrices = weights.squeeze(1) if weights.dim() == 4 else weights
    inputs, present = inputs.to(dtype), indices.unique().tolist()
    if len(present) == 1 and present[0] >= 0:
        return torch.nn.functional.linear(inputs, matrices[present[0]].to(dtype))
    products = inputs.new_zeros(inputs.shape[0], matrices.shape[1])
    for index in present:
        if index >= 0:
            tokens = (indices == index).nonzero().squeeze(1)
            products[tokens] = torch.nn.functional.linear(inputs[tokens], matrices[index].to(dtype))
    return products
