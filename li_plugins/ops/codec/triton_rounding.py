"""Rounding to 16 bits, compiled and in Triton's interpreter."""

import triton
import triton.language as tl


@triton.jit
def rounded(value, DTYPE: tl.constexpr, INTERPRET: tl.constexpr):
    """Return fp32 values rounded to ``DTYPE`` (``fp16``, ``bf16`` or ``fp32``), still fp32."""
    if DTYPE == "fp16":
        value = value.to(tl.float16).to(tl.float32)
    elif DTYPE == "bf16":
        if INTERPRET:  # it cuts where the hardware rounds to the nearest, ties to even
            pattern = value.to(tl.uint32, bitcast=True)
            pattern = (pattern + 0x7FFF + ((pattern >> 16) & 1)) & 0xFFFF0000
            value = tl.where(value == value, pattern.to(tl.float32, bitcast=True), value)
        else:
            value = value.to(tl.bfloat16).to(tl.float32)
    return value
