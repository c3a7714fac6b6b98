"""Compile every Triton kernel for compute capability 9.0 at the sizes of DeepSeek-V3, and say how much it shares."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sobre.kernels import triton_coded, triton_decode, triton_experts, triton_fp8, triton_sampling

BF16, FP32, FP64, INT64, INT32 = "*bf16", "*fp32", "*fp64", "*i64", "*i32"
E4M3, BYTE, CODE = "*fp8e4nv", "*u8", "*i8"
KERNELS = [
    (triton_experts._copy_kernel, [BF16, INT64, BF16, "i32"], {"WIDE": 1024}),
    (triton_experts._sum_kernel, [BF16, INT64, BF16, "i32"], {"N_ACTIVE": 8, "WIDE": 1024}),
    (triton_experts._swiglu_kernel, [BF16, BF16, BF16, BF16, "i32"], {"WIDE": 1024}),
    (triton_experts._swiglu_backward_kernel, [BF16] * 7 + ["i32"], {"WIDE": 1024}),
    (
        triton_decode._decode_kernel,
        [BF16, BF16, INT64, INT64, FP32, FP32, "fp32", *["i32"] * 7],
        {"BLOCK": 16, "HEADS": 16, "POSITIONS": 32, "RANK": 512, "ROPE": 64},
    ),
    (triton_sampling._draw_kernel, [FP32, FP32, FP64, INT64, FP64, "i32"], {"HAS_SCALE": True, "WIDE": 1024}),
    *(
        (
            triton_fp8._quantise_kernel,
            [BF16, E4M3, FP32, *["i32"] * 7],
            {"ONE_ROW": rows == 1, "POWER_OF_TWO": rows == 1, "HEIGHT": height, "TILE": 128},
        )
        for rows, height in [(1, 8), (128, 128)]
    ),
    *(
        (
            triton_fp8._product_kernel,
            [BYTE, BYTE, BF16, FP32, FP32, INT64, *["i32"] * 6],
            {"GROUPED": grouped, "RIGHT_ROWS": rows, "WIDEN": False, "ROWS": 64, "COLUMNS": 128, "TILE": 128},
        )
        for rows, grouped in [(1, False), (128, False), (128, True)]
    ),
    *(
        (
            triton_coded._product_kernel,
            [BF16, BYTE if four_bits else CODE, BF16, BF16, INT64, INT64, INT32, *["i32"] * 3],
            {"GROUPED": True, "FOUR_BITS": four_bits, "ROWS": 16, "OUTS": 32, "INPUTS": 128, "GROUP": 32},
        )
        for four_bits in (False, True)
    ),
    (
        triton_fp8._wgrad_kernel,
        [BYTE, BYTE, FP32, FP32, FP32, INT64, *["i32"] * 3],
        {"WIDEN": False, "ROWS": 64, "COLUMNS": 128, "TILE": 128},
    ),
]

for kernel, types, constants in KERNELS:
    names = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr")
    made = triton.compile(ASTSource(kernel, signature, constexprs=constants), target=GPUTarget("cuda", 90, 32))
    assert "cubin" in made.asm
    print(kernel.__name__, made.metadata.shared)
