"""Shards, checksums, and files that are damaged or lie about their size."""

import hashlib
import io
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from empirical.data import files
from empirical.data.npz import read_npz
from empirical.datasets import load, load_test
from tests.empirical.npz_files import arrays, save
from theory.types import InvalidInput

ROOT = Path(__file__).parents[2]
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)


def save_shards(folder: Path, name: str = "tiny", *, train: int = 12) -> np.ndarray:
    """One-example training shards 0 .. train-1 and a test shard; all training pixels."""
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 256, (train, 2, 3), dtype=np.uint8)
    for i in range(train):
        shard = {"x": pixels[i : i + 1], "y": np.array([i % 3], np.uint8)}
        save(folder / f"{name}_train_{i}.npz", shard, zipfile.ZIP_LZMA)
    save(folder / f"{name}_test.npz", {"x": pixels[:3], "y": np.array([0, 1, 2])})
    return pixels


@pytest.mark.parametrize("where", ["{}", "{}/tiny_*", "{}/tiny_*.npz"])
def test_shards_are_joined_in_the_order_of_their_numbers(tmp_path, where):
    pixels = save_shards(tmp_path / "shards")
    data = load(where.format(tmp_path / "shards"))
    assert data.name == "tiny"
    assert data.shape == (2, 3)
    assert np.array_equal(data.x_train, (pixels / 255).astype(np.float32).reshape(12, 6))
    assert np.array_equal(data.y_train, np.arange(12) % 3)
    assert np.array_equal(load_test(where.format(tmp_path / "shards")).x, pixels[:3] / 255)


def test_where_only_test_examples_are_needed_no_other_shard_is(tmp_path):
    folder = tmp_path / "shards"
    pixels = save_shards(folder, train=3)
    for path in folder.glob("*_train_*"):
        path.unlink()
    for where in (folder, folder / "tiny_*"):
        assert np.array_equal(load_test(str(where)).x, pixels / 255)
        with pytest.raises(InvalidInput, match=r"has no file \*_train\*.npz"):
            load(str(where))
    (folder / "tiny_test.npz").unlink()
    with pytest.raises(InvalidInput, match=r"has no file \*_test\*.npz"):
        load_test(str(folder))


def test_shards_that_do_not_fit_are_named(tmp_path):
    folder = tmp_path / "shards"
    save_shards(folder)
    save(folder / "tiny_train_5.npz", {"x": np.zeros((1, 3, 2), np.uint8), "y": np.array([0])})
    with pytest.raises(InvalidInput, match="tiny_train_5.npz' has x of shape"):
        load(str(folder))
    save(folder / "tiny_train_5.npz", {"x": np.zeros((1, 2, 3)), "y": np.array([0])})
    with pytest.raises(InvalidInput, match="tiny_train_5.npz' has x of shape .* type float64"):
        load(str(folder))
    save(folder / "tiny_train_5.npz", {"x": np.zeros((1, 2, 3), np.uint8), "y": np.array([0, 1])})
    with pytest.raises(InvalidInput, match=r"tiny_train_5.npz' has .* y of shape \(2,\)"):
        load(str(folder))
    (folder / "tiny_train_5.npz").write_bytes(b"PK")
    with pytest.raises(InvalidInput, match="tiny_train_5.npz' cannot be read"):
        load(str(folder))
    save_shards(folder, "other", train=1)
    with pytest.raises(InvalidInput, match="holds shards of other, tiny; give a pattern"):
        load(str(folder))
    (folder / "other_test.npz").unlink()
    with pytest.raises(InvalidInput, match=r"has no file \*_test\*.npz"):
        load(str(folder / "other_*"))
    with pytest.raises(InvalidInput, match=r"has no file \*_train\*.npz"):
        load(str(folder / "nothing_*"))


def test_a_listed_shard_that_is_missing_is_named(tmp_path):
    """But where it is none of the parts asked for, or the files are chosen among those that are there."""
    folder = tmp_path / "shards"
    folder.mkdir()
    save_shards(folder, "tiny", train=4)
    listed = [f"{'0' * 64}  other_train_7.npz"]
    for path in sorted(folder.iterdir()):
        listed.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    (folder / "SHA256SUMS").write_text("\n".join(listed) + "\n")
    whole = len(load(str(folder)).y_train)
    gone = sorted(folder.glob("tiny_train*"))[-1]
    assert len(load(str(folder / f"tiny_*[!{gone.stem[-1]}].npz")).y_train) < whole
    gone.unlink()
    with pytest.raises(InvalidInput, match=f"lacks {gone.name}, which SHA256SUMS lists"):
        load(str(folder))
    assert len(load_test(str(folder)).y)


def sums(path: Path, digest: str, *, mode: str = " ") -> None:
    path.with_name("SHA256SUMS").write_text(f"{digest} {mode}{path.name}\n{'0' * 64}  absent.npz\n")


@pytest.mark.parametrize("mode", [" ", "*"])
def test_checksums_are_checked_where_there_are_some(tmp_path, mode):
    path = tmp_path / "mine.npz"
    save(path, arrays())
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    sums(path, right.upper(), mode=mode)
    load(str(path))
    sums(path, right[::-1], mode=mode)
    with pytest.raises(InvalidInput, match="mine.npz' has SHA-256"):
        load(str(path))
    path.with_name("SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(InvalidInput, match="SHA256SUMS line 1 is 'nonsense'"):
        load(str(path))
    path.with_name("SHA256SUMS").write_bytes(b"\xff\xfe\n")
    with pytest.raises(InvalidInput, match="SHA256SUMS line 1 is "):
        load(str(path))


def header(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    """The header of an array that need not exist."""
    file = io.BytesIO()
    described = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def lying(
    path: Path, member: bytes, *, declared: int | None = None, compression: int = zipfile.ZIP_DEFLATED
) -> None:
    """A file whose x is this member, of which the directory declares another size if one is given."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", member)
    if declared is not None:
        content, size = path.read_bytes(), len(member).to_bytes(4, "little")
        path.write_bytes(content.replace(size, declared.to_bytes(4, "little")))


def peak_of_refusal(path: Path, message: str) -> int:
    """Bytes that were allocated at most while the file was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match=message):
            read_npz(path, ("x",))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_small_files_that_claim_huge_arrays_take_no_memory(tmp_path):
    path = tmp_path / "huge.npz"
    lying(path, header((10**9,)))
    assert peak_of_refusal(path, "x.npy declares shape") < 2**20
    lying(path, header((10**9,)), declared=2**32 - 2)
    assert peak_of_refusal(path, "x.npy claims 4,294,967,294 bytes") < 2**20
    lying(path, header((2**62, 8)))
    assert peak_of_refusal(path, "x.npy declares shape") < 2**20
    lying(path, header((2**31,)) + bytes(2**25))  # compresses a thousandfold
    assert path.stat().st_size < 2**16
    assert peak_of_refusal(path, "x.npy (claims|declares)") < 2**20


def resident(path: Path) -> tuple[str, float]:
    """The refusal of a file, and the MiB by which a process of its own grew: decompressors are not traced."""
    program = (
        "import sys; from pathlib import Path; from empirical.data.npz import read_npz\n"
        "status = Path('/proc/self/status')  # getrusage counts what the parent took\n"
        "peak = lambda: int(status.read_text().partition('VmHWM:')[2].split()[0])\n"
        "before = peak()\n"
        "try: read_npz(Path(sys.argv[1]), ('x',))\n"
        "except ValueError as error: print((peak() - before) / 2**10, error)"
    )
    command = [sys.executable, "-c", program, str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    grown, _, message = run.stdout.partition(" ")
    return message, float(grown)


@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak memory is read from /proc")
@pytest.mark.parametrize(
    ("compression", "message"),
    [(zipfile.ZIP_BZIP2, "not stored, deflated or LZMA"), (zipfile.ZIP_LZMA, "CRC")],
)
def test_members_that_hold_more_than_they_claim_take_no_memory(tmp_path, compression, message):
    """Zeros, 260 MiB of them, in a member that declares less in its header and in the directory."""
    claimed = 30 * 2**20  # more than one step can yield, less than a thousand times what is stored
    head = header((claimed,), "|u1")
    path = tmp_path / "more.npz"
    lying(path, head + bytes(260 * 2**20), declared=len(head) + claimed, compression=compression)
    assert path.stat().st_size < 2**16
    said, grown = resident(path)
    assert message in said
    assert grown < 128


def test_all_arrays_together_have_a_limit(tmp_path, monkeypatch):
    path = tmp_path / "two.npz"
    save(path, {"x": np.zeros((4, 2)), "y": np.zeros(4)})
    stored = sum(128 + size for size in (64, 32))
    assert set(read_npz(path, ("x", "y"), room=stored)) == {"x", "y"}
    assert set(read_npz(path, ("y",), room=128 + 32)) == {"y"}
    with pytest.raises(InvalidInput, match="two.npz' .*its arrays claim 352 bytes; 351 are left"):
        read_npz(path, ("x", "y"), room=stored - 1)
    save_shards(tmp_path / "shards")
    # Twelve training shards leave arrays of 7 bytes each; the test shard claims 128 + 18 and 128 + 24.
    monkeypatch.setattr(files, "LARGEST", 84 + 297)
    with pytest.raises(InvalidInput, match="tiny_test.npz' .* claim 298 bytes; 297 are left"):
        load(str(tmp_path / "shards"))
    monkeypatch.setattr(files, "LARGEST", 84 + 298)
    assert len(load(str(tmp_path / "shards")).x_train) == 12


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (header((-1, -5)) + bytes(40), r"has type float64 and shape \(-1, -5\)"),
        (header((7,), "<U0"), "has type <U0"),
        (header((1,), "|O") + bytes(8), "pickled objects"),
        (b"\x93NUMPY\x01\x00\x06\x00{'a(\n\n", "cannot be read"),
        (b"\x93NUMPY\x03\x00" + bytes(20), "it is of format"),
        (b"no array at all", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_members_that_are_no_arrays_are_refused(tmp_path, member, message):
    lying(tmp_path / "odd.npz", member)
    with pytest.raises(InvalidInput, match=message):
        read_npz(tmp_path / "odd.npz", ("x",))


@pytest.mark.parametrize(("key", "kind"), [("x_test", "float"), ("y_test", "int")])
def test_objects_are_not_to_be_exported_again_as_they_are(tmp_path, key, kind):
    save(tmp_path / "odd.npz", arrays() | {key: np.array([0, 1, None], dtype=object)})
    with pytest.raises(InvalidInput) as caught:
        load_test(str(tmp_path / "odd.npz"))
    told = f"({key}.npy holds pickled objects, which could run code); store {key}.astype({kind})"
    assert str(caught.value).endswith(told)


def test_arrays_that_compress_well_are_read(tmp_path):
    """An empty image of 16 MiB is no attack; nor are columns first."""
    content = {"x": np.zeros((4, 2**18)), "y": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    save(tmp_path / "zeros.npz", content, zipfile.ZIP_LZMA)
    read = read_npz(tmp_path / "zeros.npz", ("x", "y"))
    assert all(np.array_equal(read[key], content[key]) for key in content)


@pytest.fixture(scope="module", params=COMPRESSIONS)
def good(request, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.npz"
    save(path, arrays(), request.param)
    load(str(path))
    return path.read_bytes()


def accepts_or_refuses(path: Path, content: bytes) -> bool:
    """Whether the file is accepted; any error but InvalidInput fails the test."""
    path.write_bytes(content)
    try:
        load(str(path))
    except InvalidInput:
        return False
    return True


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(good, tmp_path, data):
    content = bytearray(good)
    changes = st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(changes, min_size=1, max_size=6)):
        content[place] = value
    accepts_or_refuses(tmp_path / "changed.npz", bytes(content))


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_files_are_refused(good, tmp_path, data):
    kept = data.draw(st.integers(0, len(good) - 1))
    assert not accepts_or_refuses(tmp_path / "cut.npz", good[:kept])


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_members_with_right_checksums_are_read_or_refused(tmp_path, data):
    """What the zip's checksum does not catch: headers made to harm."""
    whole = io.BytesIO()
    np.lib.format.write_array(whole, np.arange(6.0))
    content = bytearray(whole.getvalue())
    changes = st.tuples(
        st.integers(0, 127), st.sampled_from(b"({[]})'\",:0123456789<>|fiuOUVS-+ \n\\\x00\xff")
    )
    for place, value in data.draw(st.lists(changes, min_size=1, max_size=5)):
        content[place] = value
    lying(tmp_path / "header.npz", bytes(content))
    try:
        found = read_npz(tmp_path / "header.npz", ("x",))["x"]
    except InvalidInput:
        return
    assert found.nbytes <= len(content)
