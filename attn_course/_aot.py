"""Compile every shipped kernel for its architecture, without a GPU.

``python -m attn_course._aot`` prints one JSON line for each kernel and configuration,
with the seconds it took and the shared memory it asks for, and fails if one does not
compile or asks for more than its architecture has. It proves that kernels compile, not
that they are right or fast.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

if __name__ == "__main__":  # before triton is imported; whoever imports this module decides alone
    os.environ["TRITON_INTERPRET"] = "0"

from attn_course import _triton


def compile_shipped(shipped: _triton.Shipped) -> Any:
    """Compile one kernel in one configuration; returns triton's compiled kernel.

    Raises:
        MemoryError: It asks for more shared memory than the architecture has.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    place = {name: (i,) for i, name in enumerate(shipped.kernel.arg_names)}
    source = ASTSource(
        fn=shipped.kernel,
        signature=dict(shipped.signature),
        constexprs={place[name]: value for name, value in shipped.constexprs.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in aligned(shipped)},
    )
    target = GPUTarget("cuda", shipped.arch, 32)
    compiled = _triton.triton.compile(source, target=target, options=dict(shipped.options))
    limit = _triton.SHARED_MEMORY[shipped.arch]
    if compiled.metadata.shared > limit:
        raise MemoryError(
            f"{shipped.label()} asks for {compiled.metadata.shared} bytes of shared memory; "
            f"sm_{shipped.arch} has {limit} a block."
        )
    return compiled


def aligned(shipped: _triton.Shipped) -> list[str]:
    """The arguments that a launch finds to be multiples of 16: pointers, and most strides.

    Triton looks at each launch. What it finds decides how wide loads are and whether they run
    ahead through shared memory: compiled without, a kernel asks for less than it will take.
    """
    return [
        name
        for name, kind in shipped.signature.items()
        if kind.startswith("*") or (name.startswith("stride_") and kind != "constexpr")
    ]


def main() -> int:
    """Compile all of them, a JSON line each; the exit status counts the failures."""
    _triton.require()
    failures = 0
    for shipped in _triton.shipped_kernels():
        record: dict[str, Any] = {
            "kernel": shipped.kernel.__name__,
            "arch": shipped.arch,
            "label": shipped.label(),
        }
        start = time.perf_counter()
        try:
            compiled = compile_shipped(shipped)
            record["shared"] = compiled.metadata.shared
            record["instructions"] = compiled.asm["ptx"].count(";")
            record["aligned"] = compiled.asm["ttir"].count("tt.divisibility = 16")
        except Exception as error:
            failures += 1
            record["error"] = f"{type(error).__name__}: {error}"
        record["seconds"] = round(time.perf_counter() - start, 2)
        print(json.dumps(record), flush=True)
    return min(failures, 100)


if __name__ == "__main__":
    sys.exit(main())
