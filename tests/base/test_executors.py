import json
import multiprocessing
import subprocess
import sys
import time

import pytest

from neuro_lens.base import Cell, NeuroLensError, check_executor, run_cells

CELLS = """
import os
import signal
import time
from neuro_lens.base import NeuroLensError

def square(folder, n):
    if n < 0:
        raise NeuroLensError(f"{n} is negative; give another")
    (folder / "result").write_text(str(n * n))
    (folder / "process").write_text(str(os.getpid()))

def killed(folder, n):
    os.kill(os.getpid(), signal.SIGKILL)

def interrupting(folder, n):
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(100)

def lingering(folder, n):
    (folder.parent / f"{n}.process").write_text(str(os.getpid()))
    time.sleep(100)
"""
RUN = """
import sys
from neuro_lens.base import Cell, run_cells

if __name__ == "__main__":
    run_cells([Cell("cells_to_run:lingering", {"n": n}) for n in (1, 2)], sys.argv[1], 2)
"""
# submitit's debug cluster leaves the log files of its jobs open
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*_log:ResourceWarning")

OPTIONS = {"local": {}, "ray": {"num_cpus": 1}, "slurm": {"cluster": "debug"}}


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """A function that makes cells whose command all processes can import."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "cells_to_run.py").write_text(CELLS)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    yield lambda *numbers, what="square": [Cell(f"cells_to_run:{what}", {"n": n}) for n in numbers]
    sys.modules.pop("cells_to_run", None)


@pytest.fixture(scope="module", autouse=True)
def ray_of_two():
    """A Ray of two processors, which run_cells finds running."""
    import ray

    yield lambda: ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.shutdown()


def results(folders, name="result"):
    return [(folder / name).read_text() for folder in folders]


@pytest.mark.parametrize("executor", OPTIONS)
def test_every_executor_gives_the_folders_in_order_and_says_what_failed(
    executor, cells, tmp_path, ray_of_two
):
    if executor == "ray":
        ray_of_two()
    how = {"executor": executor, "options": OPTIONS[executor], "workers": 2}
    out = tmp_path / "cells"
    done = run_cells(cells(3, 1, 2), out, **how)
    assert results(done) == ["9", "1", "4"]
    assert [folder.name for folder in done] == [cell.name for cell in cells(3, 1, 2)]
    processes = results(done, "process")
    with pytest.raises(NeuroLensError, match=r"^-5 is negative; give another$"):
        run_cells(cells(1, -5, 4), out, **how)
    again = run_cells(cells(3, 1, 2, 4), out, **how)
    assert results(again) == ["9", "1", "4", "16"]
    assert results(again, "process")[:3] == processes


def test_slurm_jobs_are_json_and_a_command(cells, tmp_path):
    run_cells(cells(3, 1, 2), tmp_path / "c", 2, executor="slurm", options={"cluster": "debug"})
    shares = sorted((tmp_path / "c" / "slurm").glob("cells-*.jsonl"))
    given = [json.loads(line) for share in shares for line in share.read_text().splitlines()]
    assert sorted(cell["params"]["n"] for cell in given) == [1, 2, 3]
    assert len(shares) == 2


def test_an_unknown_executor_names_the_nearest(cells, tmp_path):
    with pytest.raises(NeuroLensError, match="did you mean 'slurm'"):
        run_cells(cells(1), tmp_path, executor="slrum")
    with pytest.raises(NeuroLensError, match="'local' takes no options"):
        run_cells(cells(1), tmp_path, options={"num_gpus": 1})


@pytest.mark.parametrize(("executor", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(executor, module, cells, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NeuroLensError, match=rf"pip install 'neuro-lens\[{executor}\]'"):
        run_cells(cells(1), tmp_path, executor=executor)


def test_slurm_without_a_cluster_says_so_before_anything_is_written(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NeuroLensError, match="cannot submit jobs here"):
        check_executor("slurm")
    with pytest.raises(NeuroLensError, match="cannot submit jobs here"):
        run_cells(cells(1), tmp_path / "c", executor="slurm")
    assert not (tmp_path / "c").exists()


def test_a_job_that_is_killed_is_said_in_a_sentence_and_the_others_are_kept(cells, tmp_path):
    killed, well = cells(1, what="killed")[0], cells(3)[0]
    how = {"executor": "slurm", "options": {"cluster": "local", "timeout_min": 1}}
    with pytest.raises(
        NeuroLensError, match=r"^job \w+ ended before its cells did, killed perhaps"
    ):
        run_cells([killed, well], tmp_path / "c", 2, **how)
    assert results([tmp_path / "c" / well.name]) == ["9"]


def test_cells_may_be_counted_as_they_end(cells, tmp_path):
    seen = []
    done = run_cells(cells(3, 1), tmp_path / "c", done=seen.append)
    assert seen == [str(folder) for folder in done]


def test_a_worker_that_is_killed_is_said(cells, tmp_path):
    with pytest.raises(NeuroLensError, match="a worker process was killed"):
        run_cells(cells(1, 2, what="killed"), tmp_path / "c", 2)


def test_ctrl_c_stops_the_workers_at_once(cells, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells(1, 2, what="interrupting"), tmp_path / "c", 2)
    assert multiprocessing.active_children() == []


def test_workers_end_when_their_parent_is_killed(cells, tmp_path):
    import psutil

    (tmp_path / "run.py").write_text(RUN)
    out = tmp_path / "c"
    parent = subprocess.Popen([sys.executable, tmp_path / "run.py", out])
    notes = [out / "1.process", out / "2.process"]
    while not all(note.exists() and note.read_text() for note in notes):
        assert parent.poll() is None
        time.sleep(0.05)
    workers = [psutil.Process(int(note.read_text())) for note in notes]
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(workers, timeout=60)[1] == []


def test_a_program_that_changed_since_a_cell_was_made_is_refused(cells, tmp_path):
    (cell,) = cells(3)
    code = tmp_path / "code" / "cells_to_run.py"
    code.write_text(code.read_text().replace("n * n", "n ** 2"))
    with pytest.raises(NeuroLensError, match=r"^cells_to_run:square changed since square-"):
        run_cells([cell], tmp_path / "c")
    (again,) = cells(3)
    assert again.name != cell.name
    assert results(run_cells([again], tmp_path / "c")) == ["9"]
