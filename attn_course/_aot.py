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

    source = ASTSource(
        fn=shipped.kernel,
        signature=dict(shipped.signature),
        constexprs={(name,): value for name, value in _by_position(shipped)},
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


def _by_position(shipped: _triton.Shipped) -> list[tuple[int, Any]]:
    names = list(shipped.kernel.arg_names)
    return [(names.index(name), value) for name, value in shipped.constexprs.items()]


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
        except Exception as error:
            failures += 1
            record["error"] = f"{type(error).__name__}: {error}"
        record["seconds"] = round(time.perf_counter() - start, 2)
        print(json.dumps(record), flush=True)
    return min(failures, 100)


if __name__ == "__main__":
    sys.exit(main())
