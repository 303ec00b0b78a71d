"""Arrays of HDF5 and netCDF files, by their names.

HDF5, and netCDF 4, which is HDF5, are read by h5py, and the classic netCDF format by SciPy. Both
are in the extra "experiments". Only numbers that are in the file itself are read: external links,
external storage and virtual data sets are not followed.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastmsgm.data.reading import check_inflated, listed, reading, shown

SUFFIXES = (".h5", ".hdf5", ".nc")
_NAMED = re.compile(r"(.+\.(?:h5|hdf5|nc)):(.+)", re.DOTALL)
_CLASSIC = b"CDF"  # the first bytes of the classic netCDF format, then its version
_NUMBERS = "biufc"  # kinds of dtype: booleans, integers, floating point, complex
_PACKING = {"scale_factor": 1, "add_offset": 0}  # attributes, and what means that nothing is packed
_MISSING = ("_FillValue", "missing_value")
_NETCDF_FILL = 9.969209968386869e36  # NC_FILL_FLOAT and NC_FILL_DOUBLE, of numbers never written


def split_name(source: str) -> tuple[str, str | None]:
    """Return the path and the array's name of ``path.h5:name``, or the source and None.

    The colon must follow one of ``SUFFIXES``, so those of Windows drives and URLs are not meant.
    """
    match = _NAMED.fullmatch(source)
    return (match[1], match[2]) if match else (source, None)


def read_variable(path: Path, name: str | None) -> np.ndarray[Any, Any]:
    """Read an array of an HDF5 or netCDF file.

    Args:
        path: The file.
        name: Of the array, with its groups: "group/name". None is the only array of two or more
            axes; those of one axis are taken for coordinates.

    Returns:
        The array, in memory of its own and in the machine's byte order.

    Raises:
        ImportError: The library for the file's format is absent.
        MemoryError: There is not enough memory.
        OSError: The system cannot read the file.
        TypeError: The array is not of numbers.
        ValueError: A damaged file, no or several arrays, no array of that name, an array whose
            numbers are in other files, or missing or packed values.
    """
    with path.open("rb") as file:
        classic = file.read(len(_CLASSIC)) == _CLASSIC
    kind = "netCDF" if path.suffix == ".nc" else "HDF5"
    with reading(path, f"{kind} file", f"write it anew with a {kind} library"):
        array = _read_classic(path, name) if classic else _read_hdf5(path, name)
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _read_hdf5(path: Path, name: str | None) -> np.ndarray[Any, Any]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f'{path}: h5py is not installed: pip install "fastmsgm[experiments]"'
        ) from error
    found: dict[str, h5py.Dataset] = {}

    def collect(where: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[where] = item

    with h5py.File(path, "r") as file:
        file.visititems(collect)  # visits what is in the file, and follows no links
        axes = {where: len(item.shape or ()) for where, item in found.items()}
        dataset = found[_chosen(path, axes, name)]
        if dataset.is_virtual or dataset.external:
            raise ValueError(
                f"{path}: data must be in the file itself, got an array that is stored in other "
                "files: copy it with h5repack or h5py"
            )
        _check_numbers(path, dataset.dtype)
        stored = min(dataset.id.get_storage_size(), path.stat().st_size)
        check_inflated(path, math.prod(dataset.shape) * dataset.dtype.itemsize, stored)
        array = dataset[()]
        # Other attributes may hold lists and references, whose damage can hang the library.
        named = [key for key in (*_PACKING, *_MISSING) if key in dataset.attrs]
        numeric = [key for key in named if dataset.attrs.get_id(key).dtype.kind in "iuf"]
        _check_present(path, array, {key: dataset.attrs[key] for key in numeric})
    return array


def _read_classic(path: Path, name: str | None) -> np.ndarray[Any, Any]:
    try:
        from scipy.io import netcdf_file
    except ImportError as error:
        raise ImportError(
            f"{path}: SciPy, which reads the classic netCDF format, is not installed: pip install "
            '"fastmsgm[experiments]"'
        ) from error
    raw = path.read_bytes()
    if raw[3:4] not in (b"\1", b"\2"):
        raise ValueError(
            f"{path}: data must be in the classic netCDF format 1 or 2 or in netCDF 4, got format "
            f"{raw[3:4].hex()}: convert it with nccopy -k nc4"
        )
    # In memory, a header that promises too much makes no reads of that size.
    with netcdf_file(io.BytesIO(raw), "r", mmap=False) as file:
        axes = {where: len(item.dimensions) for where, item in file.variables.items()}
        variable = file.variables[_chosen(path, axes, name)]
        array = np.array(variable.data)
        _check_numbers(path, array.dtype)
        _check_present(path, array, variable._attributes)
    return array


def _chosen(path: Path, axes: Mapping[str, int], name: str | None) -> str:
    """Return the name of the array to read, of all arrays and their numbers of axes."""
    if name is not None:
        if name.strip("/") not in axes:
            raise ValueError(
                f"{path}: data must be an array of the file, got {shown(name)!r}: it has "
                f"{listed(axes) or 'none'}"
            )
        return name.strip("/")
    names = [where for where, count in axes.items() if count > 1]
    if len(names) != 1:
        raise ValueError(
            f"{path}: data must be a file with one array of two or more axes, got {len(names)}: "
            f"{listed(names) or 'none'}: name one as {path.name}:NAME"
        )
    return names[0]


def _check_numbers(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in _NUMBERS:
        raise TypeError(
            f"{path}: data must be of floating point, got {shown(str(dtype))}: convert it to "
            "float32"
        )


def _check_present(
    path: Path, array: np.ndarray[Any, Any], attributes: Mapping[str, object]
) -> None:
    """Refuse what netCDF's conventions say is not the data itself."""
    for name, neutral in _PACKING.items():
        if name in attributes and not np.all(np.asarray(attributes[name]) == neutral):
            raise ValueError(
                f"{path}: data must not be packed, got the attribute {name} = "
                f"{shown(str(np.squeeze(np.asarray(attributes[name]))))}: unpack it to float32"
            )
    if array.dtype.kind != "f":
        return
    named = [
        np.asarray(attributes[k]).ravel()
        for k in ("_FillValue", "missing_value")
        if k in attributes
    ]
    fills = [fill for values in named for fill in values if values.dtype.kind in "iuf"]
    for fill in (_NETCDF_FILL, *fills):
        with np.errstate(over="ignore"):  # in float16
            value = array.dtype.type(fill)
        missing = int((array == value).sum()) if np.isfinite(value) else 0
        if missing:
            raise ValueError(
                f"{path}: data must have no missing values, got {missing} that are {fill:g}: "
                "remove their samples"
            )
