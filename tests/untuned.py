"""Programs compiled as fast as can be: what takes minutes changes no score."""

INDUCTOR = {
    "freezing": True,
    "cpp.threads": 1,
    "aot_inductor.compile_wrapper_opt_level": "O0",
}
"""Of torch, without kernels for products: those of a library need no compiler."""
