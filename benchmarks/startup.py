"""How long `neuro-lens --help` and `import neuro_lens` take, beside Python's own start."""

import subprocess
import sys
import time

COMMANDS = {
    "python": [sys.executable, "-c", ""],
    "import neuro_lens": [sys.executable, "-c", "import neuro_lens"],
    "neuro-lens --help": [sys.executable, "-m", "neuro_lens.cli", "--help"],
}
REPEATS = 7


def main():
    seconds = {name: [] for name in COMMANDS}
    for _ in range(REPEATS):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    bare = sorted(seconds["python"])[REPEATS // 2]
    for name, taken in seconds.items():
        median = sorted(taken)[REPEATS // 2]
        print(f"{name:20} {median:6.3f} s   {median / bare:5.1f} × python")


if __name__ == "__main__":
    main()
