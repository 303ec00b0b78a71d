"""LLVM vectors for intrinsics: loops over the vectors of an array, loads and stores, arithmetic.

A vector may be wider than a register. Its parts are then independent instructions that hide each
other's latency. LLVM's own vectorizer works on one or two registers at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


def loops(
    builder: Any, start: Any, stop: Any, sizes: Sequence[int], body: Callable[[int, Any], None]
) -> None:
    """Emit ``body(lanes, index)`` for the elements from ``start`` to ``stop``, by whole vectors.

    Vectors of ``sizes[0]`` lanes come first, then for the rest those of ``sizes[1]``, and so on.
    """
    for lanes in sizes:
        whole = builder.and_(builder.sub(stop, start), ir.Constant(start.type, -lanes))
        end = builder.add(start, whole)
        with cgutils.for_range_slice(builder, start, end, ir.Constant(start.type, lanes)) as (
            index,
            _,
        ):
            body(lanes, index)
        start = end


def constant(number: float, lanes: int, kind: Any = F32) -> Any:
    """A vector of equal numbers of the LLVM type ``kind``."""
    return ir.Constant(ir.VectorType(kind, lanes), [number] * lanes)


def spread(builder: Any, scalar: Any, lanes: int) -> Any:
    """A vector of copies of a scalar."""
    one = builder.insert_element(
        ir.Constant(ir.VectorType(scalar.type, 1), ir.Undefined), scalar, I32(0)
    )
    return shuffle(builder, one, [0] * lanes)


def shuffle(builder: Any, vector: Any, indices: Sequence[int], other: Any = None) -> Any:
    """The elements ``indices`` of a vector, or of the concatenation of two vectors."""
    other = ir.Constant(vector.type, ir.Undefined) if other is None else other
    return builder.shuffle_vector(
        vector, other, ir.Constant(ir.VectorType(I32, len(indices)), list(indices))
    )


def load(builder: Any, data: Any, index: Any, lanes: int) -> Any:
    """``data[index : index + lanes]``."""
    return builder.load(_at(builder, data, index, lanes), align=_size(data))


def store(builder: Any, vector: Any, data: Any, index: Any) -> None:
    builder.store(vector, _at(builder, data, index, vector.type.count), align=_size(data))


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, "fma", a, b, c)


def sqrt(builder: Any, x: Any) -> Any:
    return _call(builder, "sqrt", x)


def polynomial(builder: Any, coefficients: Sequence[float], x: Any) -> Any:
    """Horner's rule, lowest degree first."""
    *lower, result = (constant(c, x.type.count) for c in coefficients)
    for c in reversed(lower):
        result = fma(builder, result, x, c)
    return result


def _at(builder, data, index, lanes):
    return builder.bitcast(
        builder.gep(data, [index]), ir.VectorType(data.type.pointee, lanes).as_pointer()
    )


def _size(data):
    element = data.type.pointee
    return 4 if element == F32 else element.width // 8


def _call(builder, name, *arguments):
    vector = arguments[0].type
    function = ir.FunctionType(vector, [vector] * len(arguments))
    function = cgutils.get_or_insert_function(
        builder.module, function, f"llvm.{name}.v{vector.count}f32"
    )
    return builder.call(function, arguments)
