"""A few shared libraries for the C++ kernels that torch.compile writes for a graph, instead of one for each kernel.

Starting the compiler, reading headers and linking take several times as long as compiling a kernel. A graph has about
fifty kernels; this module builds as many libraries as Inductor uses threads to compile.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from torch._inductor.async_compile import AsyncCompile, get_compile_threads, kernel_code_log
from torch._inductor.codecache import CppPythonBindingsCodeCache, LambdaFuture
from torch._inductor.exc import CppCompileError
from torch._inductor.utils import clear_on_fresh_cache

# The types of the arguments of a kernel, and its source.
Kernel = tuple[list[str], str]
Function = Callable[..., None]
INCLUDE = re.compile(r"^\s*#include .*$", re.MULTILINE)


@clear_on_fresh_cache
class KernelLibrary(CppPythonBindingsCodeCache):
    """A cache of libraries with several kernels each.

    A library is loaded once for each of its kernels, as a Python module whose only function is the kernel.
    """

    cache: dict[str, Callable[[], Any]] = {}  # noqa: RUF012 (the base class has one too)
    cache_clear = staticmethod(cache.clear)
    entry_function = "kernel_0"

    @classmethod
    def build(cls, kernels: list[Kernel]) -> Callable[[], list[Function]]:
        """Start to build a library, and return a function that waits for it and returns the kernels."""
        load = cls.load_async(cls.join_sources(kernels), submit_fn=AsyncCompile.submit)

        def get_functions() -> list[Function]:
            first = load()
            functions = [first.kernel_0]
            for k in range(1, len(kernels)):
                spec = importlib.util.spec_from_file_location(f"{first.key}.kernel_{k}", first.__file__)
                assert spec is not None
                functions.append(getattr(importlib.util.module_from_spec(spec), f"kernel_{k}"))
            return functions

        return get_functions

    @classmethod
    def join_sources(cls, kernels: list[Kernel]) -> str:
        """Return a source with each kernel and its Python module in a namespace, after the headers of all of them."""
        namespaces = []
        for k, (types, source) in enumerate(kernels):
            arguments = ", ".join(f"parse_arg<{t.replace('const ', '')}>(args, {n})" for n, t in enumerate(types))
            bindings = cls.suffix_template.format(
                arg_len=len(types),
                call_entry_func=f"kernel({arguments}); Py_RETURN_NONE;",
                entry_func=f"kernel_{k}",
                extra_parse_arg="",
            )
            # each kernel has the same name, which is only unique in its namespace without C linkage
            kernel = source.replace('extern "C"', "")
            namespaces.append(f"namespace library_{k} {{\n{kernel}\n{bindings}\n}}\n")
        text = "".join(namespaces)
        headers = dict.fromkeys(line.strip() for line in INCLUDE.findall(text))
        return "\n".join(["#define PY_SSIZE_T_CLEAN", *headers, INCLUDE.sub("", text)])


class KernelBatch:
    """The kernels of a graph, whose libraries are built when the first kernel is needed.

    Attributes:
        kernels: The types of arguments and the source of each kernel, in the order in which they were added.
        build_alone: A function that starts to build a library for one kernel, and returns a future of its function.
        threads: The number of threads that compile.
    """

    def __init__(self, build_alone: Callable[[list[str], str], Any]) -> None:
        self.kernels: list[Kernel] = []
        self.build_alone = build_alone
        self.threads = get_compile_threads()

    def add(self, types: list[str], source: str) -> LambdaFuture:
        """Add a kernel, and return a future of its function."""
        assert "functions" not in self.__dict__, "the libraries of the graph have been built"
        index = len(self.kernels)
        self.kernels.append((types, source))
        return LambdaFuture(lambda: self.functions[index])

    @cached_property
    def functions(self) -> list[Function]:
        """The functions of the kernels. Those of a library that the compiler rejects are built alone."""
        libraries = min(self.threads, len(self.kernels))
        loads = [KernelLibrary.build(self.kernels[k::libraries]) for k in range(libraries)]
        functions: list[Any] = [None] * len(self.kernels)
        for k, get_functions in enumerate(loads):
            try:
                functions[k::libraries] = get_functions()
            except CppCompileError:
                alone = [self.build_alone(*kernel) for kernel in self.kernels[k::libraries]]
                functions[k::libraries] = [future.result() for future in alone]
        return functions


def join_kernels() -> None:
    """Replace AsyncCompile.cpp_pybinding in this process, so that the C++ kernels of a graph share a few libraries.

    Call it once.
    """
    build_alone = AsyncCompile.cpp_pybinding

    def add_to_batch(self: AsyncCompile, argtypes: list[str], source_code: str) -> Any:
        if get_compile_threads() <= 1:  # Inductor then expects functions, not futures
            return build_alone(self, argtypes, source_code)
        kernel_code_log.info("C++ kernel:\n%s", source_code)
        batch: KernelBatch = self.__dict__.setdefault("kernel_batch", KernelBatch(partial(build_alone, self)))
        return batch.add(argtypes, source_code)

    AsyncCompile.cpp_pybinding = add_to_batch  # type: ignore[method-assign]
