"""Code books: the values that codes of four bits may be the numbers of, by name; and codes that are numbers of 8 bits."""

import torch

# OCP MX specification 1.0, table 5 (E2M1): index = 3 low bits, bit 3 is the sign.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
# Quantiles of a normal distribution with an exact zero: QLoRA (arXiv 2305.14314), appendix E, as float32 holds them.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# FP4 of bitsandbytes (docs, "4-bit quantization"): its own subnormal, sign in bit 3, all divided by the largest value.
FP4 = tuple(sign * value / 12.0 for sign in (1.0, -1.0) for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
# ggml, kvalues_iq4nl (gguf 0.19, quants.py).
IQ4_NL = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)
CODE_BOOKS: dict[str, tuple[float, ...]] = {"e2m1": E2M1, "nf4": NF4, "fp4": FP4, "iq4_nl": IQ4_NL}
# OCP 8-bit floating point specification: codes that are the numbers' own bits.
NUMBERS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
