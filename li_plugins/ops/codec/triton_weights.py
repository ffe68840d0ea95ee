"""Weights of residual bytes in Triton: looked up by permuting the bytes of registers where they have 16 bits.

Used by all kernels that decode. Eight dimensions of a row are a unit: as many bytes as a dimension has bits.
"""

import triton
import triton.language as tl


@triton.jit
def number(value, INTERPRET: tl.constexpr):
    """Return a value that was loaded; the interpreter does not compute in bf16, and gets fp32."""
    if INTERPRET and value.dtype == tl.bfloat16:
        value = value.to(tl.float32)
    return value


@triton.jit
def _words(residual_rows, DIM: tl.constexpr, NBITS: tl.constexpr, UNITS: tl.constexpr, IN_WORDS: tl.constexpr):
    """Return the bytes at ``residual_rows [rows]``, those of 8 dimensions as one number: ``[rows, UNITS]`` int32.

    The first byte is the lowest. ``IN_WORDS`` says that each number lies where it can be read at once; ``DIM`` is a
    multiple of 8 then.
    """
    unit = tl.arange(0, UNITS)
    if IN_WORDS:
        exists = (unit * 8 < DIM)[None, :]
        kind: tl.constexpr = tl.int32 if NBITS == 4 else tl.int16 if NBITS == 2 else tl.uint8
        words = residual_rows.to(tl.pointer_type(kind), bitcast=True)
        return tl.load(words[:, None] + unit[None, :], mask=exists, other=0).to(tl.int32)
    word = tl.zeros([residual_rows.shape[0], UNITS], tl.int32)
    for place in tl.static_range(NBITS):
        at = unit * NBITS + place
        byte = tl.load(residual_rows[:, None] + at[None, :], mask=(at * 8 < DIM * NBITS)[None, :], other=0)
        word |= byte.to(tl.int32) << (8 * place)
    return word


@triton.jit
def _permuted(low, high, selector, INTERPRET: tl.constexpr):
    """Return four of the eight bytes of ``low`` and ``high``: which, say the four lowest digits of ``selector``."""
    if not INTERPRET:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], dtype=tl.int32, is_pure=True, pack=1
        )
    chosen = selector & 0
    for place in tl.static_range(4):
        which = (selector >> (4 * place)) & 7
        byte = tl.where(which < 4, low >> (8 * (which & 3)), high >> (8 * (which & 3))) & 255
        chosen |= byte << (8 * place)
    return chosen


@triton.jit
def _weight_bits(bucket_weights, field: tl.constexpr, NBITS: tl.constexpr):
    """Return the 16 bits of the weight that a field stands for: the bits of its bucket are reversed."""
    bucket = 0
    for place in tl.static_range(NBITS):
        bucket |= ((field >> place) & 1) << (NBITS - 1 - place)
    return tl.load(bucket_weights.to(tl.pointer_type(tl.int16), bitcast=True) + bucket).to(tl.int32) & 0xFFFF


@triton.jit
def _four(bucket_weights, first: tl.constexpr):
    """Return the low bytes of the weights of four fields of 4 bits, and the high bytes."""
    low, high = 0, 0
    for place in tl.static_range(4):
        bits = _weight_bits(bucket_weights, first + place, 4)
        low |= (bits & 255) << (8 * place)
        high |= (bits >> 8) << (8 * place)
    return low, high


@triton.jit
def weight_tables(bucket_weights, NBITS: tl.constexpr):
    """Return the weights as ``stored_weights`` looks them up: low and high bytes, or whole ones below 4 bits."""
    if NBITS == 4:
        low0, high0 = _four(bucket_weights, 0)
        low1, high1 = _four(bucket_weights, 4)
        low2, high2 = _four(bucket_weights, 8)
        low3, high3 = _four(bucket_weights, 12)
        return low0, low1, low2, low3, high0, high1, high2, high3
    first = _weight_bits(bucket_weights, 0, NBITS) | (_weight_bits(bucket_weights, 1, NBITS) << 16)
    second = first
    if NBITS == 2:
        second = _weight_bits(bucket_weights, 2, NBITS) | (_weight_bits(bucket_weights, 3, NBITS) << 16)
    return first, second, 0, 0, 0, 0, 0, 0


@triton.jit
def _pairs_of_weights(word, tables, NBITS: tl.constexpr, INTERPRET: tl.constexpr):
    """Return the 16 bits of the weights of the 8 dimensions of each of ``[rows, UNITS]``: ``[rows, UNITS, 8]`` int16.

    Weights are looked up by permuting the bytes of registers: two weights of 1 or 2 bits in one instruction, the low or
    the high bytes of four of 4 bits in one for each half of the table.
    """
    pair = tl.arange(0, 4)[None, None, :]
    by_pair = word[:, :, None]
    if NBITS <= 2:
        byte = by_pair
        lowest = 6 - 2 * pair
        if NBITS == 2:
            byte = (by_pair >> (pair // 2 * 8)) & 255
            lowest = 5 - pair % 2 * 4
        # twice the first field in the first digit, twice the second in the third
        doubled = ((byte | (byte << (8 + NBITS))) >> lowest) & (0x0202 if NBITS == 1 else 0x0606)
        weights = _permuted(tables[0], tables[1], doubled * 0x11 + 0x1010, INTERPRET)
    else:
        four = by_pair >> (pair // 2 * 16)
        which = four & 0x7777
        is_late = _permuted(0xFF00, 0, (four >> 3) & 0x1111, INTERPRET)
        low = _permuted(tables[0], tables[1], which, INTERPRET)
        low ^= (low ^ _permuted(tables[2], tables[3], which, INTERPRET)) & is_late
        high = _permuted(tables[4], tables[5], which, INTERPRET)
        high ^= (high ^ _permuted(tables[6], tables[7], which, INTERPRET)) & is_late
        # of two dimensions the first has the higher digit
        weights = _permuted(low, high, tl.where(pair % 2 == 0, 0x4051, 0x6273), INTERPRET)
    halves = tl.join(weights.to(tl.int16), (weights >> 16).to(tl.int16))
    return tl.reshape(halves, [word.shape[0], word.shape[1], 8])


@triton.jit
def _weights_of_fields(bucket_weights, fields, NBITS: tl.constexpr, INTERPRET: tl.constexpr):
    """Load the weight of each field; the bits of its bucket are reversed."""
    if NBITS >= 2:
        fields = ((fields >> 1) & 0x55) | ((fields & 0x55) << 1)
    if NBITS >= 4:
        fields = ((fields >> 2) & 0x33) | ((fields & 0x33) << 2)
    if NBITS >= 8:
        fields = ((fields >> 4) & 0x0F) | ((fields & 0x0F) << 4)
    return number(tl.load(bucket_weights + fields), INTERPRET)


@triton.jit
def stored_weights(
    residual_rows,
    bucket_weights,
    tables,
    DIM: tl.constexpr,
    NBITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IN_WORDS: tl.constexpr,
    IN_PAIRS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return the weights ``[rows, BLOCK_D]`` of the bytes at ``residual_rows [rows]``, those from ``DIM`` on any.

    ``IN_PAIRS`` says that weights of 16 bits and less than 8 bits of a bucket have ``tables``, of ``weight_tables``.
    """
    if NBITS == 8:
        dims = tl.arange(0, BLOCK_D)
        fields = tl.load(residual_rows[:, None] + dims[None, :], mask=(dims < DIM)[None, :], other=0).to(tl.int32)
        weights = _weights_of_fields(bucket_weights, fields, NBITS, INTERPRET)
    else:
        word = _words(residual_rows, DIM, NBITS, BLOCK_D // 8, IN_WORDS)
        if IN_PAIRS:
            weights = _pairs_of_weights(word, tables, NBITS, INTERPRET)
            weights = number(weights.to(bucket_weights.dtype.element_ty, bitcast=True), INTERPRET)
        else:
            bit = tl.arange(0, 8) * NBITS
            shift = bit // 8 * 8 + 8 - NBITS - bit % 8
            fields = (word[:, :, None] >> shift[None, None, :]) & ((1 << NBITS) - 1)
            weights = _weights_of_fields(bucket_weights, fields, NBITS, INTERPRET)
        weights = tl.reshape(weights, [residual_rows.shape[0], BLOCK_D])
    return weights
