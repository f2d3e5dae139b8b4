"""One copy of each function template in the C++ that Inductor generates for matrix products.

It writes those of a product's inner loops anew for every product, under the product's name, though
they depend on the block sizes alone, and most products have the same. Compiling the copies took
three quarters of the time of all kernels.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch._inductor.codecache import AotCodeCompiler

_NAME = re.compile(r"\b\w+_micro_gemm(?:_kernel)?\b")
_TEMPLATE = re.compile(
    rf"^template <[^>\n]*>\ninline void (?P<name>{_NAME.pattern})\(.*?^}}\n",
    re.MULTILINE | re.DOTALL,
)


def share_templates(source: str) -> str:
    """A source in which every template that differs by its name alone is there once.

    Args:
        source: C++ of all kernels; what is no such template stays as it is.
    """
    first_of: dict[str, str] = {}
    shared: dict[str, str] = {}

    def once(template: re.Match[str]) -> str:
        name, text = template["name"], _renamed(template[0], shared)
        first = first_of.setdefault(_renamed(text, {name: ""}), name)
        if first == name:
            return text
        shared[name] = first
        return ""

    return _renamed(_TEMPLATE.sub(once, source), shared)


def _renamed(text: str, names: Mapping[str, str]) -> str:
    return _NAME.sub(lambda found: names.get(found[0], found[0]), text)


@contextmanager
def shared_templates() -> Iterator[None]:
    """Meanwhile what AOTInductor compiles has each template once."""
    compile_all = AotCodeCompiler.compile

    def compile_shared(graph: Any, wrapper: str, kernels: str, *rest: Any, **settings: Any) -> Any:
        return compile_all(graph, wrapper, share_templates(kernels), *rest, **settings)

    with mock.patch.object(AotCodeCompiler, "compile", compile_shared):
        yield
