"""Arrays of HDF5 and netCDF files: which array is read, what is refused, damaged files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import torch
from scipy.io import netcdf_file

from fastmsgm import data
from fastmsgm.data.variables import split_name

ARRAY = np.random.default_rng(0).normal(size=(6, 2, 3))


def write_hdf5(path: Path, array: np.ndarray[Any, Any] = ARRAY, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("group/x", data=array, **options)


def write_netcdf(
    path: Path, array: np.ndarray[Any, Any] = ARRAY, form: Any = "NETCDF4", **attributes: Any
) -> None:
    """Write an array named "x", and the coordinates of its axes, which have one axis."""
    with netCDF4.Dataset(path, "w", format=form) as file:
        axes = [f"axis{i}" for i in range(array.ndim)]
        for name, length in zip(axes, array.shape, strict=True):
            file.createDimension(name, length)
            file.createVariable(name, "f8", (name,))[:] = np.arange(length)
        fill = attributes.pop("_FillValue", None)
        variable = file.createVariable("x", array.dtype, axes, fill_value=fill)
        variable.set_auto_maskandscale(False)
        variable[:] = array
        variable.setncatts(attributes)


def write_classic(path: Path) -> None:
    write_netcdf(path, form="NETCDF3_CLASSIC")


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f4", ">f8"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (2, 2, 3), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (4, 1, 3), "compression": "lzf", "maxshape": (None, 2, 3)},
    ],
)
def test_load_hdf5(dtype: str, options: dict[str, Any], tmp_path: Path) -> None:
    array = ARRAY.astype(dtype)
    for name in ("x.h5", "x.hdf5"):
        write_hdf5(tmp_path / name, array, **options)
        for source in (tmp_path / name, str(tmp_path / name), f"{tmp_path / name}:/group/x"):
            x = data.load(source)
            assert x.dtype == torch.float32
            assert x.is_contiguous()
            assert torch.equal(x, torch.from_numpy(array.astype(np.float32)))


@pytest.mark.parametrize(
    "form", ["NETCDF4", "NETCDF4_CLASSIC", "NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET"]
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_load_netcdf(form: str, dtype: str, tmp_path: Path) -> None:
    write_netcdf(tmp_path / "x.nc", ARRAY.astype(dtype), form, _FillValue=-999.0)
    for source in (tmp_path / "x.nc", f"{tmp_path / 'x.nc'}:x"):
        assert torch.equal(data.load(source), torch.from_numpy(ARRAY.astype(np.float32)))


@pytest.mark.parametrize("records", [1, 2])
def test_load_netcdf_of_records(records: int, tmp_path: Path) -> None:
    """In the classic format the numbers of several variables alternate."""
    with netcdf_file(tmp_path / "x.nc", "w") as file:
        file.createDimension("time", None)
        file.createDimension("site", 3)
        for name in ["x", "y"][:records]:
            file.createVariable(name, "f4", ("time", "site"))[:] = ARRAY[:, 0] + (name == "y")
    x = data.load(f"{tmp_path / 'x.nc'}:x")
    assert torch.equal(x, torch.from_numpy(ARRAY[:, 0].astype(np.float32)))


def test_images_of_bytes_in_hdf5(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(256, size=(4, 5, 7, 3), dtype=np.uint8)
    write_hdf5(tmp_path / "x.h5", array)
    images = data.load(tmp_path / "x.h5")
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(array).movedim(-1, 1))


@pytest.mark.parametrize("suffix", ["h5", "nc"])
def test_one_of_several_arrays_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    with h5py.File(path, "w") as file:
        file["a"], file["deep/er/b:c"], file["time"] = ARRAY, ARRAY + 1, np.arange(6.0)
    assert torch.equal(data.load(f"{path}:a"), torch.from_numpy(ARRAY).float())
    assert torch.equal(data.load(f"{path}:deep/er/b:c"), torch.from_numpy(ARRAY + 1).float())
    with pytest.raises(
        ValueError, match=rf"one array of two or more axes, got 2: a, deep/er/b:c: .*x\.{suffix}:N"
    ):
        data.load(path)
    with pytest.raises(
        ValueError, match=r"array of the file, got 'z': it has a, deep/er/b:c, time"
    ):
        data.load(f"{path}:z")
    with pytest.raises(
        ValueError, match=r"shape \(n, \.\.\.\) with n >= 1 and features, got \(6,\)"
    ):
        data.load(f"{path}:time")


@pytest.mark.parametrize(
    ("source", "path", "name"),
    [
        ("x.h5", "x.h5", None),
        ("x.h5:a/b", "x.h5", "a/b"),
        (r"C:\data\x.nc", r"C:\data\x.nc", None),
        (r"C:\data\x.nc:w", r"C:\data\x.nc", "w"),
        ("C:/x.hdf5:w", "C:/x.hdf5", "w"),
        ("x.npy:w", "x.npy:w", None),
        ("x.h5:", "x.h5:", None),
        ("fashion-mnist", "fashion-mnist", None),
    ],
)
def test_names_are_split_after_the_suffix(source: str, path: str, name: str | None) -> None:
    assert split_name(source) == (path, name)


@pytest.mark.parametrize("suffix", ["h5", "hdf5", "nc"])
def test_an_absent_file_is_named(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"there is no file .*x\.{suffix}$"):
        data.load(f"{tmp_path / 'x'}.{suffix}:name")


# ---- what is refused ----


def test_arrays_of_no_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    for array in (
        np.array([["a", "b"]], dtype=h5py.string_dtype()),
        np.array([[b"a", b"b"]]),
        np.zeros((2, 3), dtype=[("a", "f4"), ("b", "f4")]),
    ):
        write_hdf5(path, array)
        with pytest.raises(TypeError, match=r"x\.h5: data must be of floating point, got"):
            data.load(path)
    for array in (ARRAY.astype(np.int32), ARRAY > 0, ARRAY + 1j):
        write_hdf5(path, array)
        with pytest.raises(TypeError, match=r"x\.h5: data must be of floating point, .* got torch"):
            data.load(path)


def test_empty_files_and_shapes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_group("group")
        file["null"] = h5py.Empty("f4")
    with pytest.raises(ValueError, match="one array of two or more axes, got 0: none"):
        data.load(path)
    with pytest.raises(ValueError, match="damaged HDF5 file"):
        data.load(f"{path}:null")
    write_hdf5(path, np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"got \(0, 3\)"):
        data.load(path)
    write_hdf5(path, np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match=r"must be finite in float32, .* in 1 of 1 samples"):
        data.load(path)


def external_link(file: Any, other: str) -> None:
    file["x"] = h5py.ExternalLink(other, "secret")


def soft_link_to_external(file: Any, other: str) -> None:
    file["group"] = h5py.ExternalLink(other, "/")
    file["x"] = h5py.SoftLink("/group/secret")


def external_storage(file: Any, other: str) -> None:
    file.create_dataset("x", (6, 3), "f8", external=[(other, 0, 144)])


def virtual(file: Any, other: str) -> None:
    layout = h5py.VirtualLayout((6, 2, 3), "f8")
    layout[:] = h5py.VirtualSource(other, "secret", (6, 2, 3))
    file.create_virtual_dataset("x", layout)


@pytest.mark.parametrize("name", ["", ":x", ":group/secret"])
@pytest.mark.parametrize("link", [external_link, soft_link_to_external, external_storage, virtual])
def test_other_files_are_never_read(
    link: Callable[[Any, str], None], name: str, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = ARRAY
    with h5py.File(tmp_path / "x.h5", "w") as file:
        link(file, str(tmp_path / "other.h5"))
    with pytest.raises(ValueError, match=r"x\.h5: data must be (in the file itself,|a|an) "):
        data.load(f"{tmp_path / 'x.h5'}{name}")


def test_missing_values_are_refused(tmp_path: Path) -> None:
    path, array = tmp_path / "x.nc", ARRAY.astype("f4")
    array[0, 0, 0] = array[1] = -999.5
    for form in ("NETCDF4", "NETCDF3_CLASSIC"):
        for name in ("_FillValue", "missing_value"):
            write_netcdf(path, array, form, **{name: np.float32(-999.5)})
            with pytest.raises(ValueError, match=r"no missing values, got 7 that are -999\.5: rem"):
                data.load(path)
        with netCDF4.Dataset(path, "w", format=form) as file:
            file.createDimension("n", 4)
            file.createVariable("x", "f8", ("n", "n"))[:2] = 1.0
        with pytest.raises(ValueError, match=r"no missing values, got 8 that are 9\.96921e\+36"):
            data.load(path)


@pytest.mark.parametrize("name", ["scale_factor", "add_offset"])
def test_packed_values_are_refused(name: str, tmp_path: Path) -> None:
    for form in ("NETCDF4", "NETCDF3_CLASSIC"):
        write_netcdf(tmp_path / "x.nc", ARRAY.astype("i2"), form, **{name: 0.5})
        with pytest.raises(ValueError, match=rf"not be packed, got the attribute {name} = 0\.5"):
            data.load(tmp_path / "x.nc")
    write_netcdf(tmp_path / "x.nc", ARRAY, scale_factor=1.0, add_offset=0.0)
    assert len(data.load(tmp_path / "x.nc")) == 6


def test_a_newer_classic_format_is_named(tmp_path: Path) -> None:
    write_netcdf(tmp_path / "x.nc", form="NETCDF3_64BIT_DATA")
    with pytest.raises(ValueError, match=r"x\.nc: .*got format 05: convert it with nccopy -k nc4"):
        data.load(tmp_path / "x.nc")


@pytest.mark.parametrize(
    ("write", "library"), [(write_netcdf, "h5py"), (write_classic, "scipy.io")]
)
def test_an_absent_library_is_named(
    write: Callable[[Path], None], library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "x.nc")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"x\.nc: .* not installed: .*fastmsgm\[experiments\]"):
        data.load(tmp_path / "x.nc")


# ---- damaged files ----


@pytest.mark.parametrize("suffix", ["h5", "hdf5", "nc"])
@pytest.mark.parametrize("raw", [b"", b"CDF", b"CDF\1", b"CDF\1" + b"\xff" * 99, b"x" * 5000])
def test_what_is_no_such_file_is_refused(suffix: str, raw: bytes, tmp_path: Path) -> None:
    (tmp_path / f"x.{suffix}").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"x\.{suffix}: (damaged|data must be)"):
        data.load(tmp_path / f"x.{suffix}")


@pytest.mark.parametrize("write", [write_hdf5, write_netcdf, write_classic])
def test_a_truncated_file_is_refused(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x.nc"
    write(path)
    raw = path.read_bytes()
    for length in (*range(0, len(raw) - 4, max(1, len(raw) // 40)), len(raw) - 4):
        path.write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r"x\.nc: (damaged netCDF file|data must be)"):
            data.load(path)


def test_damaged_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write_hdf5(path, np.random.default_rng(0).normal(size=(500, 3)), compression="gzip")
    raw = bytearray(path.read_bytes())
    raw[-3000] ^= 255
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x\.h5: damaged HDF5 file"):
        data.load(path)


def test_a_shape_without_numbers_is_refused(tmp_path: Path) -> None:
    """Chunks that were never written take no space, but would take memory."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (2**40, 4), "f4", chunks=(2**10, 4))
    with pytest.raises(
        ValueError, match=r"x\.h5: damaged file \(its header promises 17592186044416 bytes"
    ):
        data.load(tmp_path / "x.h5")


def test_names_in_a_file_cannot_control_the_terminal(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in ("\x1b[31m", "a" * 1000):
            file[name] = ARRAY
    with pytest.raises(ValueError, match="one array of two or more axes") as caught:
        data.load(tmp_path / "x.h5")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(tmp_path)) + 400
