"""The torch bridge. Importing this module imports torch (about a second): load it only where a tensor is wanted."""

from __future__ import annotations

import numpy as np
import torch

from fedhelm.errors import BadInput
from fedhelm.tensors.bits import Bits, bits_from
from fedhelm.tensors.dtypes import BF16

__all__ = ["bits_of", "tensor_of"]

_KNOWN = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
}


def bits_of(name: str, tensor: torch.Tensor) -> Bits:
    """Return the bits of ``tensor``, copied only where it is not on the CPU or not contiguous.

    Raises:
        BadInput: its type or layout has no place in a file; the message has ``name``.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in _KNOWN:
        kind = f"{tensor.dtype} ({tensor.layout}, on {tensor.device.type})".replace("torch.", "")
        raise BadInput(f"tensor {name!r} is {kind}: only dense tensors of floats, integers or booleans can be sent")
    plain = tensor.detach().resolve_neg().cpu().contiguous()
    if plain.dtype is torch.bfloat16:
        # numpy has no bfloat16: its bits go as 16-bit integers
        return Bits(BF16, plain.view(torch.int16).numpy().view(np.uint16))
    return bits_from({name: plain.numpy()})[name]


def tensor_of(bits: Bits) -> torch.Tensor:
    """Return a CPU tensor over the memory of ``bits``, which must be writable."""
    if bits.dtype == BF16:
        return torch.from_numpy(bits.data.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(bits.data)
