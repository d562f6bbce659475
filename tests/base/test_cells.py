from pathlib import Path

import pytest

from neuro_lens.base import Cell, one_thread, run_cells

RUNS = []


def square(folder: Path, n: int) -> None:
    """Write n squared; negative n fails after having written something."""
    (folder / "result").write_text(str(n * n))
    RUNS.append(n)
    if n < 0:
        raise RuntimeError("negative")


def cells(*numbers):
    return [Cell(f"{__name__}:square", {"n": n}) for n in numbers]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this())
    RUNS.clear()


def _this():
    import types

    module = types.ModuleType(__name__)
    module.square = square
    return module


def test_cells_run_once_and_are_skipped_after(tmp_path):
    first = run_cells(cells(2, 3), tmp_path)
    assert [f.joinpath("result").read_text() for f in first] == ["4", "9"]
    again = run_cells(cells(3, 4, 2), tmp_path)
    assert RUNS == [2, 3, 4]
    assert again[0] == first[1]


def test_a_cell_that_fails_leaves_nothing_and_keeps_the_others(tmp_path):
    with pytest.raises(RuntimeError, match="negative"):
        run_cells(cells(5, -1), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [cells(5)[0].name]


def test_a_name_follows_from_what_determines_the_result():
    a, b = cells(1, 2)
    assert a.name != b.name
    assert a.name == cells(1)[0].name


def threads(folder: Path) -> None:
    """Write how many threads torch may use."""
    import torch

    (folder / "result").write_text(str(torch.get_num_threads()))


def test_a_cell_runs_on_one_thread_and_leaves_the_setting_alone(tmp_path, monkeypatch):
    import sys

    import torch

    monkeypatch.setattr(sys.modules[__name__], "threads", threads, raising=False)
    before = torch.get_num_threads()
    (folder,) = run_cells([Cell(f"{__name__}:threads", {})], tmp_path)
    assert (folder / "result").read_text() == "1"
    assert torch.get_num_threads() == before


def test_one_thread_holds_for_blas_as_for_torch_and_is_put_back():
    from threadpoolctl import threadpool_info, threadpool_limits

    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(2):
        outside = blas()
        with one_thread():
            inside = blas()
        assert blas() == outside
    assert 2 in outside
    assert set(inside) == {1}
