"""The launcher: every signal once, one line when a rank dies, restarts where they help. Ranks are small scripts here."""

import os
import signal
import subprocess
import sys

import children
import kills
import pytest
import tiny

from hftune import launch, machine
from hftune.errors import UserError

WAITS = """
import os, signal, sys, time
got = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda n, f: got.append(n))
open(sys.argv[1] + os.environ["RANK"], "w").close()
while not got:
    signal.pause()
time.sleep(0.2)  # for a second signal, which must not come: if this is too short, only that is missed
open(sys.argv[1] + os.environ["RANK"], "w").write(str(len(got)))
sys.exit(128 + got[0])
"""


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    """As from a terminal, with the handlers of signals given back."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", launch.LAUNCHED):
        monkeypatch.delenv(name, raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def group(script, *args, processes=2):
    return launch.Group(processes, [sys.executable, "-c", script, *map(str, args)])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_reaches_every_rank_once(tmp_path, monkeypatch, number, status):
    running = group(WAITS, tmp_path / "rank")
    sleep, sent = launch.time.sleep, []

    def when_ready(seconds):
        if not sent and all((tmp_path / f"rank{rank}").exists() for rank in range(2)):
            sent.append(os.kill(os.getpid(), number))
        sleep(seconds)

    monkeypatch.setattr(launch.time, "sleep", when_ready)
    assert running.wait() == status
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["1", "1"]


def test_a_second_sigint_ends_ranks_that_do_not_listen(tmp_path, monkeypatch):
    deaf = "signal.signal(signal.SIGINT, signal.SIG_IGN); open(sys.argv[1] + os.environ['RANK'], 'w').close()"
    running = group(f"import os, signal, sys, time; {deaf}; time.sleep(100)", tmp_path / "rank")
    sleep = launch.time.sleep

    def impatient(seconds):
        if all((tmp_path / f"rank{rank}").exists() for rank in range(2)):
            os.kill(os.getpid(), signal.SIGINT)
        sleep(seconds)

    monkeypatch.setattr(launch.time, "sleep", impatient)
    assert running.wait() == 137


def test_a_signal_that_nohup_has_ignored_is_not_passed_on():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    hears = "import os, signal, sys; os.kill(os.getppid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGHUP)"
    running = group(hears)
    assert running.wait() == 0
    assert running.received is None


def test_a_dead_rank_ends_the_others_with_one_line(capfd, monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.5)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    script = (
        f"import os, signal, time\n{deaf}\nos.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(100)"
    )
    assert group(script).wait() == 137
    said = capfd.readouterr().err
    assert said.startswith("error: rank 1 was killed by SIGKILL\n  hint: if memory ran out, ")
    assert said.count("error:") == 1
    assert "eval.batch_tokens where it is measured" in said, "hftune eval has ranks too, and no checkpoint"


def test_the_status_is_that_of_the_ranks():
    assert group("pass").wait() == 0
    assert group("import os, sys; sys.exit(2 * int(os.environ['RANK']))").wait() == 2


FAULT = """
import os, signal, sys
from hftune import cli, errors
def fault():
    raise getattr(errors, sys.argv[1])("what is wrong", hint="what to do")
cli.app = fault
if os.environ["RANK"] in sys.argv[2]:
    signal.pause()  # it is late, and would find the same
cli.main()
"""


@pytest.mark.parametrize(("kind", "status"), [("UserError", 2), ("Breakdown", 1)])
@pytest.mark.parametrize("late", ["none", "0", "1"])
def test_a_fault_is_told_once_by_whichever_rank_finds_it_first(late, kind, status, capfd):
    assert group(FAULT, kind, late).wait() == status
    assert capfd.readouterr().err == "error: what is wrong\n  hint: what to do\n"


def relaunch(script, monkeypatch, processes=1, restarts=2, words=()):
    monkeypatch.setattr(launch, "hftune", lambda: [sys.executable, "-c", script])
    monkeypatch.setattr(sys, "argv", ["hftune", *map(str, words)])
    return launch.relaunch(processes, restarts)


COUNTS = """
import sys
with open(sys.argv[1], "a") as file:
    file.write(" ".join(sys.argv[2:]) + ".")
sys.exit({status} if open(sys.argv[1]).read().count(".") < 3 else 0)
"""


@pytest.mark.parametrize(
    ("status", "ended", "starts"), [(1, 0, "--fresh a.a.a."), (2, 2, "--fresh a."), (143, 143, "--fresh a.")]
)
def test_another_start_where_it_helps(tmp_path, monkeypatch, status, ended, starts):
    words = (tmp_path / "starts", "--fresh", "a")
    assert relaunch(COUNTS.format(status=status), monkeypatch, words=words) == ended
    assert (tmp_path / "starts").read_text() == starts


STOPPED = """
import os, signal, sys
with open(sys.argv[1], "a") as file:
    file.write("started.")
again = lambda: os.kill(os.getppid(), signal.SIGINT)
signal.signal(signal.SIGINT, lambda number, frame: again() if sys.argv[2] == "deaf" else sys.exit(1))
again()
while True:
    signal.pause()
"""


@pytest.mark.parametrize(("rank", "status"), [("deaf", 137), ("broken", 1)])
def test_no_other_start_after_a_signal(tmp_path, monkeypatch, rank, status):
    assert relaunch(STOPPED, monkeypatch, words=(tmp_path / "starts", rank)) == status
    assert (tmp_path / "starts").read_text() == "started."


def test_a_rank_does_not_launch(monkeypatch):
    assert launch.relaunch(1) is None
    with pytest.raises(UserError, match="0 processes"):
        launch.relaunch(0)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launch.relaunch(2) is None


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"--processes: 2 processes are more than this machine has GPUs \(1\)"):
        machine.accelerator()


def test_a_rank_that_is_stuck_ends_the_run_in_bounded_time(tmp_path, tokenizer_folder, capfd):
    source = tiny.mlm(tmp_path, timeout="3s", save_steps=100)
    source["tokenizer"] = {"path": str(tokenizer_folder)}

    def work():
        if os.environ["RANK"] == "1":
            os.kill = lambda pid, number: signal.pause()  # where it would be killed, it waits for ever
            kills.Point("step", nth=2, rank=1).arm()
        children.train(source)

    assert children.ranks(2, work) == [1, 1]
    assert "error: nothing moved for 3 s: a rank or a data worker is stuck" in capfd.readouterr().err


def test_the_rank_that_is_left_says_that_the_other_is_gone(tmp_path, tokenizer_folder, capfd):
    source = tiny.mlm(tmp_path, save_steps=1)
    source["tokenizer"] = {"path": str(tokenizer_folder)}
    assert kills.start(source, kills.Point("step", nth=3, rank=1), 2) == [1, -signal.SIGKILL]
    assert "Lost: another rank is gone; step-2 is kept" in capfd.readouterr().err


def test_ranks_find_the_modules_that_the_command_finds(tmp_path):
    """An installed hftune does not look in the current folder, whose evaluate.py or datasets.py its ranks took for the library."""
    (tmp_path / "typer.py").write_text("raise RuntimeError('this is no module of hftune')")
    (tmp_path / "bin").mkdir()
    script = (
        "import subprocess, sys; from hftune import launch; sys.exit(subprocess.call([*launch.hftune(), '--version']))"
    )
    (tmp_path / "bin" / "hftune").write_text(script)
    done = subprocess.run(
        [sys.executable, tmp_path / "bin" / "hftune"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()[:1]) == (0, ["hftune"]), done.stderr
