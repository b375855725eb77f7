"""What an HDF5 file can be made to do to its reader, and that none of it happens."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from seqwm.core.errors import DataError
from seqwm.data.sources.columns import UnreadableColumn
from seqwm.data.sources.hdf5 import open_hdf5, read_array, read_byte_strings


def read(path, name="x"):
    with open_hdf5(path) as file:
        return read_array(file.root, name)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.hdf5"


@pytest.mark.parametrize(
    "options",
    [{}, {"chunks": True, "maxshape": (None, 3)}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True},
     {"fletcher32": True, "chunks": True}],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, ">f8", np.int64, np.uint8, np.bool_])
def test_numbers_are_read_whatever_their_layout(path, options, dtype):
    values = (np.arange(60).reshape(20, 3) % 2).astype(dtype)
    with h5py.File(path, "w") as file:
        file.create_dataset("group/x", data=values, **options)
    found = read(path, "group/x")
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype.newbyteorder("=")


def test_names_and_children_are_listed(path):
    with h5py.File(path, "w") as file:
        file["a/b/x"] = [1.0]
        file["a/c"] = [1.0]
    with open_hdf5(path) as file:
        assert file.names == {"a", "a/b", "a/b/x", "a/c"}
        assert (file.children(""), file.children("a"), file.children("a/c")) == (["a"], ["b", "c"], [])


@pytest.mark.parametrize("link", [h5py.SoftLink("/secret"), h5py.ExternalLink("other.hdf5", "/x")])
def test_links_are_refused_wherever_they_are(path, link):
    with h5py.File(path, "w") as file:
        file["x"] = [1.0]
        file["deep/down"] = [1.0]
        file["deep/link"] = link
    with pytest.raises(DataError) as refused, open_hdf5(path):
        pass
    assert [(p.check, p.file, p.column) for p in refused.value.problems] == [("outside-file", str(path), "deep/link")]


def refused(path, name="x"):
    with pytest.raises(UnreadableColumn) as caught:
        read(path, name)
    return caught.value.check


def test_external_storage_is_refused_and_nothing_of_the_other_file_is_read(path, tmp_path):
    (tmp_path / "secret").write_bytes(b"a password that is not ours")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (20,), np.uint8, external=[(str(tmp_path / "secret"), 0, 20)])
    with h5py.File(path) as file:
        assert file["x"][()].tobytes() == b"a password that is n"  # what a plain reader does
    assert refused(path) == "outside-file"


def test_virtual_data_sets_are_refused(path, tmp_path):
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["y"] = np.arange(4.0)
    layout = h5py.VirtualLayout(shape=(4,), dtype=np.float64)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "y", shape=(4,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)
    assert refused(path) == "outside-file"


@pytest.mark.parametrize(
    "values",
    [
        np.array(["a", "b"], dtype=h5py.string_dtype()),
        np.array([b"a", b"b"]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    ],
)
def test_objects_strings_and_structs_are_refused(path, values):
    with h5py.File(path, "w") as file:
        file["x"] = values
    assert refused(path) == "object-dtype"


def test_references_are_refused(path):
    with h5py.File(path, "w") as file:
        file["y"] = [1.0]
        file.create_dataset("x", data=[file["y"].ref], dtype=h5py.ref_dtype)
    assert refused(path) == "object-dtype"


def test_a_filter_that_would_be_loaded_from_a_plugin_is_refused(path):
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((4,))
        plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((4,)), plist)
    assert refused(path) == "unknown-format"


def test_a_claim_to_more_rows_than_the_file_can_hold_takes_no_memory(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (2**40,), np.float64, chunks=(1024,))
        file.create_dataset("y", (2**31,), np.uint8, chunks=(1024,))
    assert refused(path, "x") == refused(path, "y") == "impossible-length"


@pytest.mark.parametrize(("value", "check"), [(3.0, "wrong-shape"), (h5py.Empty("f4"), "null-value")])
def test_a_single_value_and_an_empty_space_are_no_columns(path, value, check):
    with h5py.File(path, "w") as file:
        file["x"] = value
    assert refused(path) == check


def test_a_group_is_no_column(path):
    with h5py.File(path, "w") as file:
        file.create_group("x")
    assert refused(path) == refused(path, "y") == "missing-column"


def test_a_flipped_byte_under_a_checksum_is_told(path):
    values = np.arange(4000.0)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(4000,), fletcher32=True)
    content = path.read_bytes()
    place = content.index(values.tobytes()) + 801
    path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    assert refused(path) == "corrupt-file"


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"not HDF5 at all"])
def test_what_is_no_hdf5_is_told(path, content):
    path.write_bytes(content)
    with pytest.raises(DataError) as caught, open_hdf5(path):
        pass
    assert [p.check for p in caught.value.problems] == ["corrupt-file"]


def test_encoded_images_of_one_length_and_of_many_are_read(path):
    rows = [np.arange(count, dtype=np.uint8) for count in (3, 5)]
    with h5py.File(path, "w") as file:
        many = file.create_dataset("many", (2,), h5py.vlen_dtype(np.uint8))
        many[:] = rows
        file["one"] = np.stack([rows[0], rows[0]])
        file["floats"] = np.zeros((2, 3))
    with open_hdf5(path) as file:
        assert read_byte_strings(file.root, "many") == [row.tobytes() for row in rows]
        assert read_byte_strings(file.root, "one") == [rows[0].tobytes()] * 2
        with pytest.raises(UnreadableColumn) as caught:
            read_byte_strings(file.root, "floats")
        assert caught.value.check == "wrong-type"
