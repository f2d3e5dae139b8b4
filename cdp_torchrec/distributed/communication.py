"""Quantized communication: the precision in which embeddings travel between ranks."""

from typing import cast

from fbgemm_gpu.quantize_comm import QuantizationContext, QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor
from torchrec.distributed.types import CommOp, QuantizedCommCodecs
from torchrec.distributed.types import QuantizedCommCodec as Codec

from cdp_torchrec.distributed.plans.config import CommunicationConfig, Precision

GRADIENT_SCALE = 2.0**14
"""What fp16 gradients are multiplied by on their way.

The gradient of a mean over thousands of impressions is mostly below 6e-5, where fp16 loses digits,
and a tenth of it below 6e-8, where fp16 loses it all. With this scale fp16 ends at 4.
"""

_SPARSE_TYPES = {"fp32": SparseType.FP32, "fp16": SparseType.FP16, "bf16": SparseType.BF16}


class ScaledCodec(QuantizedCommCodec):
    """Codec of small numbers: scales before it rounds, and back after it has widened again.

    FBGEMM's own `loss_scale` divides before it widens, and loses what the scale has saved.
    """

    def encode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """Scaled and rounded; values beyond the largest number of the type become that number."""
        return super().encode(input_tensor * GRADIENT_SCALE, ctx)

    def decode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """Back in float32."""
        return super().decode(input_tensor, ctx) / GRADIENT_SCALE


def communication_codecs(config: CommunicationConfig) -> dict[str, QuantizedCommCodecs] | None:
    """What rounds the embeddings and their gradients, by collective; None if nothing does.

    All collectives of a lookup's output are named, so that no table is left out: the all-to-all of
    whole tables and of columns, the reduce-scatter of rows, the all-to-all of sequences.
    """
    if config.forward == "fp32" and config.backward == "fp32":
        return None
    return {
        operation.name: QuantizedCommCodecs(
            forward=_codec(config.forward), backward=_gradient_codec(config.backward)
        )
        for operation in CommOp
    }


def _codec(precision: Precision) -> Codec[QuantizationContext]:
    codec = QuantizedCommCodec(_SPARSE_TYPES[precision])
    return cast(Codec[QuantizationContext], codec)


def _gradient_codec(precision: Precision) -> Codec[QuantizationContext]:
    if precision != "fp16":
        return _codec(precision)  # bf16 has the range of float32
    return cast(Codec[QuantizationContext], ScaledCodec(SparseType.FP16))
