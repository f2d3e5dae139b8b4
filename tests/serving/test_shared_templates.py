"""Each function template is compiled once, and called by what had a copy of it."""

from cdp_torchrec.serving.shared_templates import share_templates

TEMPLATES = """
template <int64_t BLOCK_M, bool accum>
inline void {name}_micro_gemm_kernel(
    const float* A
) {{
    load<{block}>(A);
}}

template <bool accum>
inline void {name}_micro_gemm(
    const float* A
) {{
    {name}_micro_gemm_kernel<8, accum>(A);
}}
"""
FUNCTION = """
extern "C"
void {name}(const float* X)
{{
    {name}_micro_gemm<false>(X);
}}
"""


def product(name: str, *, block: int) -> str:
    return (TEMPLATES + FUNCTION).format(name=name, block=block)


def test_templates_that_differ_by_their_name_alone_are_there_once() -> None:
    source = product("add_1", block=16) + product("relu_10", block=16)
    calls_the_first = FUNCTION.replace("{name}_micro", "add_1_micro").format(name="relu_10")
    assert share_templates(source).split() == (product("add_1", block=16) + calls_the_first).split()


def test_templates_that_differ_stay_and_so_does_all_else() -> None:
    source = product("add_1", block=16) + product("add_2", block=32) + "void mm_micro_gemm();\n"
    assert share_templates(source) == source
